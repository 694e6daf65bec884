"""Run a model on a few tokens to find out what it does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from pipelines.errors import Problem, RecipeError

NUM_TRIED = 8  # tokens of a forward pass that tries a model


def gives_logits_of_head(model: PreTrainedModel) -> bool:
    """Try whether a model returns what its head gives, for each position and unchanged.

    Some scale, cap or cut it (Granite, Cohere, Gemma 2). The head is made to give known numbers,
    large enough to be capped, so that the weights do not matter.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    given: list[torch.Tensor] = []

    def replace(head: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        numbers = torch.linspace(-100, 100, output.numel(), device=output.device)
        given.append(numbers.view(output.shape).to(output.dtype))
        return given[-1].clone()

    ids = torch.arange(4, device=model.device)[None] % num_embeddings(model)
    training = model.training
    model.eval()
    hook = head.register_forward_hook(replace)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        hook.remove()
        model.train(training)
    (first, *others) = given
    return not others and first.shape[:2] == ids.shape and torch.equal(first, logits.to(first))


def isolates_packed_rows(body: Any) -> bool:
    """Try whether rows that are packed into one see nothing of each other.

    A model that takes no note of positions that begin again would mix them without a word.
    """
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return False
    ids = torch.arange(4, device=body.device)[None] % body.get_input_embeddings().num_embeddings
    places = torch.tensor([[0, 1, 0, 1]], device=body.device)  # two rows
    training = body.training
    body.eval()
    with torch.no_grad():
        packed = body(ids, position_ids=places).last_hidden_state[:, 2:]
        seen = torch.ones_like(ids)  # with a mask, positions keep nothing apart
        mixed = body(ids, position_ids=places, attention_mask=seen).last_hidden_state[:, 2:]
        alone = body(ids[:, 2:]).last_hidden_state
    body.train(training)
    return bool((packed - alone).abs().max() < 0.1 * (mixed - alone).abs().max())


def try_model(model: PreTrainedModel, *, causal: bool, name: str, path: str) -> None:
    """Run a model on a few tokens.

    Raise RecipeError where its logits are not finite or, if it must be `causal`, where those of a
    token depend on the tokens after it.
    """
    ids = (torch.arange(NUM_TRIED, device=model.device) % num_embeddings(model))[None]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % num_embeddings(model)
    try:
        with without_8bit_outliers(model):
            logits = logits_of(model, ids)
            moved = (logits_of(model, other) - logits).abs() if causal else None
    except (AttributeError, RuntimeError) as error:
        if not getattr(model, "is_quantized", False):
            raise
        message = f"{name!r} does not run on quantised weights ({error}). Drop quantization."
        raise RecipeError([Problem(path, message)]) from error
    if not logits.isfinite().all():
        message = f"{name!r} gives logits that are not finite (NaN or Inf)."
        raise RecipeError([Problem(path, f"{message} Use an undamaged copy.")])
    # (1, tokens, vocabulary); those before the last token stay as they are but for rounding
    if moved is not None and moved[:, :-1].max() > 1e-3 * moved[:, -1].max():
        raise RecipeError(
            [
                Problem(
                    path,
                    f"{name!r}, of the family {model.config.model_type!r}, is not causal: its "
                    "tokens see those after them, which it would be trained to predict. Use a "
                    "decoder, such as gpt2, llama or qwen2.",
                )
            ]
        )


@contextmanager
def without_8bit_outliers(model: PreTrainedModel) -> Iterator[None]:
    """Keep the states of one token out of how 8-bit layers round those of another.

    LLM.int8() multiplies columns in which any token has an outlier in higher precision.
    """
    from bitsandbytes.nn import Linear8bitLt

    states = [m.state for m in model.modules() if isinstance(m, Linear8bitLt)]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def num_positions(config: Any) -> int:
    """Return the most tokens that a model reads at once; no limit is a very large number."""
    for name in ("max_position_embeddings", "max_seq_len"):
        number = getattr(config, name, None)
        if isinstance(number, int) and number > 0:
            return number
    return sys.maxsize


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the first logits that a model gives for tokens, as in evaluation."""
    training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    model.train(training)
    return next(value for key, value in outputs.items() if key.endswith("logits")).float()


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model can read."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.num_embeddings)
