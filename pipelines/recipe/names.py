"""Short names of a recipe's parts, as commands take and print them. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pipelines.recipe.recipe import Recipe
from pipelines.recipe.rules import REPO_ID
from pipelines.recipe.values import NF4, Int8, Lora, Model, Scratch

Method = Literal["full", "lora", "lora-8bit", "lora-4bit"]
METHODS: tuple[Method, ...] = get_args(Method)
TASK_NAMES = {
    "CausalLM": "pretrain",
    "TextClassification": "classify",
    "QuestionAnswering": "answer",
    "InstructionTuning": "instruct",
    "PreferenceTuning": "prefer",
}
"""What each task does, in a word."""
LOCAL = ("data", "runs", ".", "..", "~", "/")
"""First parts of paths that are no user of the Hub."""


def task_name(recipe: Recipe) -> str:
    """Return what a recipe's task does, in a word; for a new task, its class."""
    name = type(recipe.task).__name__
    return TASK_NAMES.get(name, name)


def method_name(recipe: Recipe) -> str:
    """Return how a recipe trains: all weights, or an adapter on a base in some precision."""
    if recipe.lora is None:
        return "full"
    return {type(None): "lora", Int8: "lora-8bit", NF4: "lora-4bit"}[type(recipe.quantization)]


def method_parts(method: str) -> tuple[Int8 | NF4 | None, Lora | None]:
    """Return quantization and adapter of a method."""
    quantized: dict[str, Int8 | NF4] = {"lora-8bit": Int8(), "lora-4bit": NF4()}
    quantization = quantized.get(method)
    return quantization, None if method == "full" else Lora()


def model_name(recipe: Recipe) -> str:
    """Return the checkpoint, or the size of the random weights, that a recipe starts from."""
    if isinstance(recipe.model, Model):
        return recipe.model.name_or_path
    layers, _, width = recipe.model.widths
    named = Scratch(size=recipe.model.size).widths == recipe.model.widths
    return f"scratch:{recipe.model.size}" if named else f"scratch, {layers} x {width}"


def hub_ids(recipe: Recipe) -> list[str]:
    """Return the Hub repositories that a recipe reads, its data set first."""
    model = recipe.model
    tokenizer = model.tokenizer
    source = recipe.task.dataset
    names = [source.path, *(each.path for each in source.mixed_with or ())]
    names += [model.name_or_path] if isinstance(model, Model) else []
    names += [tokenizer.name_or_path] if isinstance(tokenizer, Model) else []
    names += [tokenizer] if isinstance(tokenizer, str) else []
    return [name for name in names if is_hub_id(name)]


def is_hub_id(name: str) -> bool:
    """Tell a Hub id from a path; a path that exists, or begins with data/ or runs/, is none."""
    first = Path(name).parts[:1]
    return bool(REPO_ID.fullmatch(name)) and first[0] not in LOCAL and not Path(name).exists()
