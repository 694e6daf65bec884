"""Continue texts, or reply to them, with a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from pipelines.data.rows import Examples
from pipelines.errors import Problem, RecipeError
from pipelines.hub.load import LoadedResult
from pipelines.inference.loading import load_to_infer
from pipelines.inference.resumable_jsonl import map_file
from pipelines.models.assisted_decoding import NO_ASSISTANCE, Assistance, check_assistant
from pipelines.models.generation import check_room, continue_prompts, without_adapter_class
from pipelines.process import quiet_libraries
from pipelines.recipe.generation import merge_options
from pipelines.recipe.values import Precision
from pipelines.tasks.base import Task
from pipelines.tasks.generation import (
    Continuation,
    GenerationOptions,
    trim_reply,
    trim_start,
)


@quiet_libraries()
def generate_text(
    repo: str,
    text: str,
    options: GenerationOptions,
    *,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    assistant: str | None = None,
    prompt_lookup_num_tokens: int | None = None,
) -> None:
    """Print the continuation of a text: token by token, or after a beam search.

    `options` replace the recipe's. Raise RecipeError for options that are out of range and for an
    empty text, and DataError for a task that writes no text.
    """
    if not text.strip():
        raise RecipeError([Problem("TEXT", "is empty. Give its beginning, or what to answer.")])
    loaded = load_to_infer(repo, revision, base=base, precision=precision)
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    generation = merge_options(task, options)
    task.check_generates()
    assistance = load_assistance(loaded, assistant, prompt_lookup_num_tokens)
    prompts = task.prompts(Examples([task.row(text)], "TEXT"), tokenizer)
    check_room(loaded.model, prompts, lambda _: "TEXT")
    if generation.num_beams > 1:
        (written,) = continue_prompts(loaded.model, tokenizer, prompts, generation, seed=seed)
        print(strip_reply(task, written.text))
    else:
        streamer = ReplyStreamer(task, tokenizer, write=partial(print, end="", flush=True))
        continue_prompts(
            loaded.model,
            tokenizer,
            prompts,
            generation,
            seed=seed,
            streamer=streamer,
            assistance=assistance,
        )
        print()


@quiet_libraries()
def generate_file(
    repo: str,
    file: Path,
    options: GenerationOptions,
    *,
    out: Path | None = None,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 16,
    assistant: str | None = None,
    prompt_lookup_num_tokens: int | None = None,
) -> None:
    """Continue each row of a file; see `resumable_jsonl.map_file` for `out` and errors."""
    loaded = load_to_infer(repo, revision, base=base, precision=precision)
    assistance = load_assistance(loaded, assistant, prompt_lookup_num_tokens)

    def compute(examples: Examples) -> list[dict[str, Any]]:
        written = generate_examples(
            loaded, examples, options, batch_size=batch_size, seed=seed, assistance=assistance
        )
        return [asdict(each) for each in written]

    settings = {
        "command": "generate",
        "result": loaded.sha256,
        "base": base,
        "precision": precision,
        **asdict(merge_options(loaded.recipe.task, options)),
        "seed": seed,
    }
    map_file(file, compute, out, settings, chunk_size=4 * batch_size)


@quiet_libraries()
def generate_examples(
    loaded: LoadedResult,
    examples: Examples,
    options: GenerationOptions,
    *,
    batch_size: int = 16,
    seed: int | None = None,
    assistance: Assistance = NO_ASSISTANCE,
) -> list[Continuation]:
    """Return what a result writes after each row, in order. `options` replace the recipe's.

    Raise RecipeError for options that are out of range, and DataError for a row that cannot be used
    and for a task that writes no text.
    """
    task, model, tokenizer = loaded.recipe.task, loaded.model, loaded.tokenizer
    generation = merge_options(task, options)
    prompts = task.prompts(examples, tokenizer)
    check_room(model, prompts, examples.locate)
    written = continue_prompts(
        model,
        tokenizer,
        prompts,
        generation,
        batch_size=batch_size,
        seed=seed,
        assistance=assistance,
    )
    return [replace(each, text=strip_reply(task, each.text)) for each in written]


def load_assistance(
    loaded: LoadedResult, assistant: str | None, prompt_lookup_num_tokens: int | None
) -> Assistance:
    """Load a smaller result that proposes tokens. Raise RecipeError for another tokenizer."""
    if assistant is None:
        return Assistance(prompt_lookup_num_tokens=prompt_lookup_num_tokens)
    helper = load_to_infer(assistant)
    helper.recipe.task.check_generates()
    model = without_adapter_class(helper.model)
    main = without_adapter_class(loaded.model)
    check_assistant(main, loaded.tokenizer, model, helper.tokenizer)
    return Assistance(model)


class ReplyStreamer(TextStreamer):
    """Pass a text on while it is written, a reply as `trim_start` leaves it.

    `write` is called after each token, with "" until a word is complete. What it raises ends the
    generation.
    """

    def __init__(self, task: Task, tokenizer: Any, *, write: Callable[[str], None]):
        super().__init__(
            tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        self.write = write
        self.at_start = task.writes_replies
        self.begin = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.at_start:
            self.begin += text
            text = trim_start(self.begin)
            self.at_start = not text
        self.write(text)


def strip_reply(task: Task, text: str) -> str:
    """Return a reply without the spaces around it, and the continuation of a text as it is."""
    return trim_reply(text) if task.writes_replies else text
