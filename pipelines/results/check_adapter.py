"""Check the files of an adapter against the recipe, before it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.models.adapters import ALL_LINEAR, lora_config, matched
from pipelines.models.quantization import HEADS
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import shortened
from pipelines.recipe.values import Model
from pipelines.results.check_config import JSON_BYTES
from pipelines.results.check_tensors import (
    ADAPTER,
    FLOATS,
    INDEX,
    WHOLE,
    Tensors,
    read_shapes,
    read_tensors,
)
from pipelines.results.sidecar import file_error, is_list_of_strings, read_json


def check_adapter_files(folder: Path, recipe: Recipe) -> None:
    """Raise RecipeError unless configuration and weights make the adapter of the recipe."""
    check_adapter_config(folder, recipe)
    tensors = read_tensors(folder / ADAPTER[1])
    for name, (dtype, _) in tensors.items():
        if dtype not in FLOATS:
            raise file_error(ADAPTER[1], f"{name!r} has data type {dtype}, not a float.")
    check_rank(recipe, tensors)


def check_adapter_config(folder: Path, recipe: Recipe) -> None:
    """Raise RecipeError unless adapter_config.json is what PEFT writes for the recipe.

    Fields that this PEFT does not know must be empty.
    """
    from peft import PeftConfig

    for name in (WHOLE, INDEX, "config.json"):
        if (folder / name).exists():
            raise file_error(name, "is of a whole model, but the recipe's result is an adapter.")
    for name in ADAPTER:
        if not (folder / name).is_file():
            raise file_error(name, f"is missing: {folder} has no {name}.")
    config = read_json(folder / ADAPTER[0], limit=JSON_BYTES)
    assert isinstance(recipe.model, Model)
    assert recipe.lora is not None
    by_peft: PeftConfig = lora_config(recipe)
    layers = adapted_layers(read_shapes(folder / ADAPTER[1]))
    expected = by_peft.to_dict() | {
        "base_model_name_or_path": recipe.model.name_or_path,
        "inference_mode": True,
    }
    problems = []
    for name, value in config.items():
        if not is_expected(name, value, expected, layers):
            text = f"{name} is {value!r}, but the recipe's is {expected.get(name)!r}."
            problems.append(Problem(ADAPTER[0], shortened(text)))
    needed = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "revision")
    problems += [
        Problem(ADAPTER[0], f"{name} is missing.")
        for name in ("base_model_name_or_path", *needed)
        if name not in config
    ]
    if problems:
        raise RecipeError(problems)


def adapted_layers(tensors: Tensors) -> set[str]:
    """Return the names of the layers that tensors are the adapters of."""
    return {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}


def is_expected(name: str, value: Any, expected: dict[str, Any], layers: set[str]) -> bool:
    """Tell whether a field of adapter_config.json has the value that PEFT writes.

    `layers` are those that the file of weights has adapters for. Where the recipe says all-linear,
    `target_modules` must match these and no others.
    """
    wanted = expected.get(name)
    match name:
        case "peft_version":
            return isinstance(value, str)
        case "fan_in_fan_out":
            return isinstance(value, bool)
        case "target_modules" if wanted == {*ALL_LINEAR}:
            ends = [matched(end, layers) for end in value] if is_list_of_strings(value) else []
            return all(ends) and set().union(*ends) == layers
        case "modules_to_save":  # PEFT adds the names that heads of this kind may have
            names = set(value) if is_list_of_strings(value) else set()
            return names <= {*HEADS} and names >= {*(wanted or ())} and bool(value) == bool(names)
        case "target_modules" | "exclude_modules":
            if is_list_of_strings(value) and is_list_of_strings(wanted):
                return sorted(value) == sorted(wanted or ())
            return bool(value == wanted)
    if name not in expected and not value:
        return True
    return bool(value == wanted and isinstance(value, bool) == isinstance(wanted, bool))


def check_rank(recipe: Recipe, tensors: Tensors) -> None:
    """Raise RecipeError unless the adapter has the recipe's rank, before PEFT allocates it."""
    assert recipe.lora is not None
    for name, (_, shape) in tensors.items():
        if name.endswith((".lora_A.weight", ".lora_embedding_A")) and shape[:1] != (recipe.lora.r,):
            text = f"{name!r} has shape {shape}, but the recipe's rank is {recipe.lora.r}."
            raise file_error(ADAPTER[1], text)
