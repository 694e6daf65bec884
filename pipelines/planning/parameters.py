"""The parameters of a model, counted without its weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from pipelines.models.adapters import add_adapter
from pipelines.models.build import from_scratch
from pipelines.models.checkpoint_checks import read_config
from pipelines.planning.blocks import blocks_of
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Scratch

PARTS = ("embeddings", "attention", "mlp", "norms", "head", "adapter")


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; `trainable` and `frozen` by part."""

    trainable: dict[str, int]
    frozen: dict[str, int]
    num_layers: int
    in_blocks: int
    """Parameters of all blocks, without an adapter's."""
    vocabulary: int
    width: int

    @property
    def total(self) -> int:
        """Return all parameters."""
        return sum(self.trainable.values()) + sum(self.frozen.values())

    @property
    def base(self) -> int:
        """Return the parameters of the base and its head, without an adapter."""
        return self.total - self.trainable["adapter"]

    @property
    def num_trainable(self) -> int:
        """Return the trainable parameters."""
        return sum(self.trainable.values())


def config_of(recipe: Recipe, labels: tuple[str, ...]) -> Any:
    """Return the config of the model that a recipe with a checkpoint trains."""
    assert not isinstance(recipe.model, Scratch)
    config = copy.deepcopy(read_config(recipe.model, recipe.task, "model.name_or_path"))
    for name, value in recipe.task.model_kwargs(labels).items():
        setattr(config, name, value)
    return config


def empty_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]) -> Any:
    """Return the model of a recipe, its adapter included, with shapes and without numbers.

    A quantised base has the parameters that it was quantised from.
    """
    with torch.device("meta"):
        if isinstance(recipe.model, Scratch):
            return from_scratch(recipe.task, recipe.model, tokenizer, labels)
        auto: Any = getattr(transformers, recipe.task.auto_class)
        base = auto.from_config(config_of(recipe, labels))
        return base if recipe.lora is None else add_adapter(base, without_values(recipe))


def without_values(recipe: Recipe) -> Recipe:
    """Return a recipe whose adapter needs no weights to be made, with the same shapes."""
    assert recipe.lora is not None
    lora = replace(recipe.lora, init_lora_weights="default")
    return replace(recipe, lora=lora, quantization=None)


def count_parameters(model: Any) -> Parameters:
    """Count the parameters of a model by part."""
    trainable, frozen = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = {id(parameter) for parameter in base.base_model.parameters()}
    blocks = blocks_of(model)
    inside = [each for block in blocks for each in block.named_parameters()]
    in_blocks = {id(parameter) for _, parameter in inside}
    counted: set[int] = set()
    for path, module in model.named_modules():
        if "original_module" in path:  # PEFT's copy of a head that is trained as a whole
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in counted:  # a head that shares the embeddings
                continue
            counted.add(id(parameter))
            part = part_of(f"{path}.{name}", module, in_block=id(parameter) in in_blocks)
            if part != "adapter" and id(parameter) not in body:
                part = "head"
            counts = trainable if parameter.requires_grad else frozen
            counts[part] += parameter.numel()
    return Parameters(
        trainable=trainable,
        frozen=frozen,
        num_layers=len(blocks),
        in_blocks=sum(p.numel() for name, p in inside if "lora_" not in name),
        vocabulary=base.get_input_embeddings().weight.shape[0],
        width=base.get_input_embeddings().weight.shape[1],
    )


def part_of(name: str, module: torch.nn.Module, *, in_block: bool) -> str:
    """Return the part of a model's body that a parameter of a module belongs to."""
    if "lora_" in name:
        return "adapter"
    if "norm" in type(module).__name__.lower():
        return "norms"
    if not in_block:
        return "embeddings"
    return "attention" if "att" in name.lower() else "mlp"
