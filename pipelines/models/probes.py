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
from pipelines.models.upstream import without_8bit_outliers

NUM_TRIED = 8  # tokens of a forward pass that tries a model


def gives_logits_of_head(model: PreTrainedModel) -> bool:
    """Try whether a model's logits are what its head makes of the body's last hidden states.

    Some scale, cap or cut them (Granite, Cohere, Gemma 2). The head is made to return known
    numbers, large enough to be capped, so that the weights do not matter.
    """
    untyped: Any = model
    head = untyped.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    states: list[Any] = []
    replaced: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(body: Any, arguments: Any, output: Any) -> None:
        states.append(getattr(output, "last_hidden_state", None))

    def replace(head: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        numbers = torch.linspace(-100, 100, output.numel(), device=output.device)
        numbers = numbers.view(output.shape).to(output.dtype)
        replaced.append((arguments[0], numbers))
        return numbers.clone()

    hooks = [model.base_model.register_forward_hook(note), head.register_forward_hook(replace)]
    try:
        with evaluating(model):
            ids = torch.arange(4, device=model.device)[None] % num_embeddings(model)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(states) != 1 or len(replaced) != 1:
        return False
    [state], [(hidden, numbers)] = states, replaced
    same_states = state is not None and torch.equal(hidden, state)
    return same_states and torch.equal(numbers, logits.to(numbers))


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def passes_keywords_to_body(model: PreTrainedModel) -> bool:
    """Try whether a model passes a keyword that it does not know on to its body, which takes it."""
    body = model.base_model
    for module in (model, body):
        kinds = {each.kind for each in inspect.signature(module.forward).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return False
    passed: list[bool] = []

    def note(body: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        passed.append("plan" in keywords)

    hook = body.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with evaluating(model):
            ids = torch.arange(4, device=model.device)[None] % num_embeddings(model)
            model(input_ids=ids, attention_mask=torch.ones_like(ids), plan=None)
    finally:
        hook.remove()
    return passed == [True]


def isolates_packed_rows(body: Any) -> bool:
    """Try whether a body isolates rows from each other that are packed into one.

    A model that ignores positions that begin again would mix them without a warning.
    """
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return False
    ids = torch.arange(4, device=body.device)[None] % body.get_input_embeddings().num_embeddings
    positions = torch.tensor([[0, 1, 0, 1]], device=body.device)  # two rows
    with evaluating(body):
        packed = body(ids, position_ids=positions).last_hidden_state[:, 2:]
        mask = torch.ones_like(ids)  # with which positions isolate nothing
        mixed = body(ids, position_ids=positions, attention_mask=mask).last_hidden_state[:, 2:]
        alone = body(ids[:, 2:]).last_hidden_state
    return bool((packed - alone).abs().max() < 0.1 * (mixed - alone).abs().max())


def needs_no_mask(body: Any, no_mask: torch.Tensor) -> bool:
    """Try whether a body with `no_mask` gives a row what it does with the mask of its padding.

    The row is padded on the right. A body that computes with its mask may raise, or differ.
    """
    ids = torch.arange(8, device=body.device) % body.get_input_embeddings().num_embeddings
    ids = ids.view(2, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=body.device)
    with evaluating(body), without_8bit_outliers(body):
        masked = body(ids, attention_mask=mask, use_cache=False).last_hidden_state[1, :2]
        try:
            bare = body(ids, attention_mask=no_mask, use_cache=False).last_hidden_state[1, :2]
        except (IndexError, RuntimeError):
            return False
    return bool((bare - masked).abs().max() <= 0.02 * masked.abs().max())


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


def num_positions(config: Any) -> int:
    """Return the most tokens that a model reads at once; no limit is a very large number."""
    for name in ("max_position_embeddings", "max_seq_len"):
        number = getattr(config, name, None)
        if isinstance(number, int) and number > 0:
            return number
    return sys.maxsize


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the first logits that a model gives for tokens, as in evaluation."""
    with evaluating(model):
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    logits: torch.Tensor = next(v for name, v in outputs.items() if name.endswith("logits"))
    return logits.float()


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens a model can read."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.num_embeddings)
