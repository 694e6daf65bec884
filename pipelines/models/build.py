"""Models: a checkpoint or random weights, in full precision, 8 or 4 bits, with an adapter."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import GPT2Config, PreTrainedModel, PreTrainedTokenizerBase

from pipelines.console import console
from pipelines.errors import Problem, RecipeError
from pipelines.models.adapters import add_adapter
from pipelines.models.attention import choose_attention
from pipelines.models.checkpoint_checks import (
    check_finite,
    check_weights,
    loading_notes,
    read_config,
)
from pipelines.models.download import ensure_downloaded
from pipelines.models.probes import num_embeddings, num_positions, try_model
from pipelines.models.quantization import quantization_config
from pipelines.models.tokenizer_checks import check_special_tokens, guard_embeddings, max_token_id
from pipelines.models.upstream import (
    forget_outlier_columns,
    keep_4bit_layout,
    tensors_read_singly,
)
from pipelines.process import returning_freed_memory
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import NF4, Int8, Model, Scratch
from pipelines.tasks.base import Task

FUSED = {"gelu_new": "gelu_pytorch_tanh"}
"""The same activations in one kernel; GPT-2's own takes eight."""


def build_model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    *,
    storage: torch.dtype = torch.uint8,
) -> Any:
    """Return the model to train: base, head and, if the recipe has one, a new adapter.

    4-bit weights are packed into tensors of the type `storage`.
    """
    task = recipe.task
    if isinstance(recipe.model, Scratch):
        return from_scratch(task, recipe.model, tokenizer, labels)
    base = load_base(
        task,
        recipe.model,
        labels,
        quantization=recipe.quantization,
        tokenizer=tokenizer,
        storage=storage,
    )
    return base if recipe.lora is None else add_adapter(base, recipe)


def from_scratch(
    task: Task, model: Scratch, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
) -> PreTrainedModel:
    """Return a GPT-2 with random weights."""
    layers, heads, width = model.widths
    config = GPT2Config(
        vocab_size=1 + max_token_id(tokenizer),
        n_positions=model.n_positions,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        resid_pdrop=model.dropout,
        embd_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        summary_first_dropout=0.0,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **task.model_kwargs(labels),
    )
    base: PreTrainedModel = getattr(transformers, task.auto_class).from_config(config)
    choose_attention(base, task.length)
    return base


def load_base(
    task: Task,
    model: Model,
    labels: tuple[str, ...],
    *,
    quantization: Int8 | NF4 | None,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype = torch.float32,
    head: Literal["own", "new", "adapter"] = "new",
    storage: torch.dtype = torch.uint8,
    path: str = "model.name_or_path",
) -> PreTrainedModel:
    """Load a checkpoint in `dtype`, 8 or 4 bits with the head of the task.

    The head is the checkpoint's own; or new, if the checkpoint has no head of this size; or comes
    with an adapter. A language model's is always its own. Raise RecipeError, which names
    `path`, for a checkpoint that lacks any other tensor, or cannot do what the task needs.
    """
    name, config = model.name_or_path, read_config(model, task, path)
    ensure_downloaded(model, path=path)
    base, loading = read_weights(
        task,
        model,
        labels,
        config,
        quantization=quantization,
        tokenizer=tokenizer,
        dtype=dtype,
        storage=storage,
        path=path,
    )
    new_head = task.head is not None and head != "own"
    check_weights(base, loading, name=name, path=path, new_head=new_head)
    check_finite(base, name=name, path=path)
    check_special_tokens(tokenizer, num_embeddings(base), path=path)
    check_length(task, base)
    keep_4bit_layout(base)
    forget_outlier_columns(base)
    try_model(base, causal=task.head is None, name=name, path=path)
    choose_attention(base, task.length)
    guard_embeddings(base, tokenizer)
    if head == "new":
        for note in loading_notes(base, loading, config, labels):
            console().print(f"  {note}", markup=False)
    return base


def check_length(task: Task, base: PreTrainedModel) -> None:
    """Raise RecipeError for a task whose rows may be longer than a model reads."""
    positions = num_positions(base.config)
    if task.length > positions:
        text = f"{task.length} is above the model's {positions}."
        raise RecipeError([Problem(f"task.{task.length_field}", text)])


def read_weights(
    task: Task,
    model: Model,
    labels: tuple[str, ...],
    config: Any,
    *,
    quantization: Int8 | NF4 | None,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    storage: torch.dtype,
    path: str,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a checkpoint's model and what transformers reports of loading it.

    `config` is the checkpoint's. Raise RecipeError, which names `path`, for unreadable files.
    """
    device = PartialState().device
    loader = getattr(transformers, task.auto_class)
    bits = quantization_config(quantization, storage)
    fused = FUSED.get(getattr(config, "activation_function", ""))
    try:
        with returning_freed_memory(), tensors_read_singly() if quantization else nullcontext():
            loaded: tuple[PreTrainedModel, dict[str, Any]] = loader.from_pretrained(
                model.name_or_path,
                revision=model.revision,
                trust_remote_code=False,
                use_safetensors=True,  # no pickle is read
                ignore_mismatched_sizes=True,  # `check_weights` names them
                output_loading_info=True,
                dtype=dtype,
                pad_token_id=tokenizer.pad_token_id,
                **({"quantization_config": bits} if bits else {}),  # None would undo a stored one
                device_map={"": device} if quantization and device.type != "cpu" else None,
                **({"activation_function": fused} if fused else {}),
                **task.model_kwargs(labels),
            )
    except (OSError, SafetensorError) as error:  # files that are missing, or damaged
        text = f"{model.name_or_path!r} cannot be loaded: {error}"
        raise RecipeError([Problem(path, text)]) from error
    return loaded
