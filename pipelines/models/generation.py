"""Continue texts greedily, by beam search or by sampling, the same in a batch as alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from pipelines.errors import DataError, Problem, RecipeError
from pipelines.models.assisted_decoding import NO_ASSISTANCE, Assistance
from pipelines.models.probes import num_embeddings, num_positions
from pipelines.process import quiet_libraries
from pipelines.tasks.generation import Continuation, Generation


@quiet_libraries()
def continue_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    options: Generation,
    *,
    batch_size: int = 16,
    seed: int | None = None,
    streamer: BaseStreamer | None = None,
    assistance: Assistance = NO_ASSISTANCE,
) -> list[Continuation]:
    """Return what the model writes after each prompt, in the order of the prompts.

    A prompt gives the same tokens in a batch as alone, but for the rounding of bfloat16, and of an
    8-bit base, whose outliers depend on the batch. With a `seed`, samples depend on it and on the
    prompt, not on the other prompts: equal prompts have equal samples. Without a seed every sample
    differs. A prompt and its continuation fill at most the model's positions. A `streamer` gets the
    tokens of a single prompt as they come; a beam search has no tokens before its end. With
    `assistance`, greedy search of one text at a time writes the same tokens.

    Raise DataError for a prompt that leaves no room, RecipeError for sampling in a beam search and
    for texts that are too long for the assistance.
    """
    if options.do_sample and options.num_beams > 1:
        text = "a beam search draws nothing. Use --num-beams 1, or do not sample."
        raise RecipeError([Problem("do_sample", text)])
    base = without_adapter_class(model)
    check_room(base, prompts, "prompt {}".format)
    eos, positions = tokenizer.eos_token_id, num_positions(base.config)
    assistance.check_room(prompts, options.max_new_tokens, positions)
    unknown = ids_without_token(base, tokenizer)
    continuations: dict[int, Continuation] = {}
    with writing(base), writing(assistance.assistant or base):
        for rows, room in batches(prompts, options, positions, batch_size):
            longest = len(prompts[rows[0]])
            ids = torch.tensor([[eos] * (longest - len(p)) + p for p in (prompts[r] for r in rows)])
            lengths = torch.tensor([len(prompts[row]) for row in rows])
            mask = torch.arange(longest) >= longest - lengths[:, None]  # (batch, length)
            written = base.generate(
                ids.to(base.device),
                attention_mask=mask.long().to(base.device),
                generation_config=generation_config(options, room, eos, unknown, assistance),
                logits_processor=draws(options, [prompts[row] for row in rows], seed),
                streamer=streamer,
                synced_gpus=False,  # this process has all weights; the others write other texts
                assistant_model=assistance.assistant,
            )
            for row, tokens in zip(rows, written[:, longest:].tolist(), strict=True):
                continuations[row] = to_continuation(tokens, tokenizer)
    return [continuations[row] for row in range(len(prompts))]


def to_continuation(tokens: list[int], tokenizer: Any) -> Continuation:
    """Return generated tokens as a text, up to EOS."""
    ended = tokenizer.eos_token_id in tokens
    before_eos = tokens[: tokens.index(tokenizer.eos_token_id)] if ended else tokens
    text = tokenizer.decode(
        before_eos, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return Continuation(text, ended)


def without_adapter_class(model: Any) -> Any:
    """Return the transformers model, in which an adapter's layers stay where they are."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_room(model: Any, prompts: Sequence[list[int]], where: Callable[[int], str]) -> None:
    """Raise DataError, which says `where`, for a prompt that leaves no room for a token."""
    positions = num_positions(without_adapter_class(model).config)
    for index, prompt in enumerate(prompts):
        assert prompt
        if len(prompt) >= positions:
            raise DataError(
                f"{where(index)}: {len(prompt):,} tokens leave no room to write in the model's "
                f"{positions:,} positions. Give a shorter text."
            )


@contextmanager
def writing(model: Any) -> Iterator[None]:
    """Switch dropout and the model's own defaults of generation off inside.

    The head gets a contiguous copy of the last states: for a slice and a frozen head, as with an
    adapter, torch would copy the head's weights for each row.
    """
    training, defaults = model.training, model.generation_config
    model.eval()
    untyped: Any = GenerationConfig
    model.generation_config = untyped()
    head = model.get_output_embeddings()
    whole = head.register_forward_pre_hook(lambda head, args: (args[0].contiguous(),))
    try:
        yield
    finally:
        whole.remove()
        model.generation_config = defaults
        model.train(training)


def batches(
    prompts: Sequence[list[int]], options: Generation, positions: int, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Yield the numbers of prompts that share a batch, longest first, and the tokens to write.

    Prompts without room for `max_new_tokens` share a batch with prompts of their own length, so
    that no continuation is shortened because of another prompt. So do all prompts if repetition is
    penalised: padding would count as a repetition.
    """
    alone = options.repetition_penalty != 1 or options.no_repeat_ngram_size > 0

    def kind(row: int) -> tuple[int, int]:
        length = len(prompts[row])
        return min(options.max_new_tokens, positions - length), length if alone else 0

    longest_first = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for (room, _), members in groupby(longest_first, key=kind):
        rows = list(members)
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size], room


def ids_without_token(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that a model can write and its tokenizer has no token for.

    There are some where the embeddings were padded to a round number.
    """
    size = num_embeddings(model)
    if size <= len(tokenizer):
        return []
    return list(range(1 + max(tokenizer.get_vocab().values()), size))


def generation_config(
    options: Generation,
    room: int,
    eos_token_id: int,
    unknown: list[int],
    assistance: Assistance,
) -> GenerationConfig:
    """Translate to transformers' terms; sampling is left to `draws`.

    The ids in `unknown` are never written.
    """
    beams: dict[str, Any] = {}
    if options.num_beams > 1:
        beams = {"length_penalty": options.length_penalty, "early_stopping": False}
    untyped: Any = GenerationConfig
    config: GenerationConfig = untyped(
        max_new_tokens=room,
        num_beams=options.num_beams,
        do_sample=False,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        use_cache=True,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        suppress_tokens=unknown or None,
        prompt_lookup_num_tokens=assistance.prompt_lookup_num_tokens,
        **beams,
    )
    return config


def draws(
    options: Generation, prompts: Sequence[list[int]], seed: int | None
) -> LogitsProcessorList:
    """Return the processors after which the likeliest token is a sample; [] without sampling."""
    if not options.do_sample:
        return LogitsProcessorList()
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(options.temperature)]
    if options.top_k:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(TopPLogitsWarper(options.top_p))
    return LogitsProcessorList([*steps, GumbelNoise([generator(p, seed) for p in prompts])])


class GumbelNoise(LogitsProcessor):
    """Gumbel-max trick: the argmax of the noisy logits is a sample from their softmax.

    transformers samples all rows of a batch from one generator: each row changes the others.
    """

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        size = scores.shape[1]
        noise = [torch.empty(size).exponential_(generator=each) for each in self.generators]
        return scores - torch.stack(noise).log().to(scores.device)


def generator(prompt: list[int], seed: int | None) -> torch.Generator:
    """Return a generator on the CPU, seeded by `seed` and the prompt, or by nothing."""
    made = torch.Generator()
    if seed is None:
        made.seed()
    else:
        digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
        made.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return made
