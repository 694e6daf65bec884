"""Check the files of a whole model against the recipe, before it is built."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import shortened
from pipelines.recipe.values import Scratch
from pipelines.results.check_config import JSON_BYTES, check_fetches_nothing, check_stored_bits
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

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
SIZED = re.compile(r"layer|expert|block|head|hidden|embd|inner|intermediate|vocab|width|d_model")


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read a config.json. Raise RecipeError for an unknown model, or one that fetches code."""
    for name in ADAPTER:
        if (folder / name).exists():
            raise file_error(name, "is of an adapter, but the recipe's result is a whole model.")
    if not (folder / "config.json").is_file():
        raise file_error("config.json", f"is missing in {folder}.")
    config = read_json(folder / "config.json", limit=JSON_BYTES)
    check_fetches_nothing(config, "config.json", but=("quantization_config",))
    check_stored_bits(config, "config.json")
    if str(config.get("model_type")) not in CONFIG_MAPPING:
        text = f"transformers knows no model_type {config.get('model_type')!r}."
        raise file_error("config.json", shortened(text))
    return config


def check_model_files(
    folder: Path, recipe: Recipe, config: dict[str, Any], labels: tuple[str, ...]
) -> None:
    """Raise RecipeError unless config.json and weights make the model of the recipe."""
    tensors: Tensors = {}
    for file in weight_files(folder):
        tensors |= read_tensors(file)
    check_sizes(config, tensors)
    if isinstance(recipe.model, Scratch):
        layers, heads, width = recipe.model.widths
        made = {"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": width}
        for name, value in (made | {"n_positions": recipe.model.n_positions}).items():
            if config.get(name) != value:
                text = f"{name} is {config.get(name)!r}, but the recipe's is {value!r}."
                raise file_error("config.json", shortened(text))
    if check_stored_bits(config, "config.json") == 4:
        check_packed(folder, recipe, labels, tensors)
    else:
        check_builds(folder, recipe, labels, tensors)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model's weights. Raise RecipeError if one is missing or extra."""
    shards = {file.name for file in folder.glob("model*.safetensors")}
    if not (folder / INDEX).is_file():
        if shards != {WHOLE}:
            raise file_error(
                WHOLE, f"is missing in {folder}." if WHOLE not in shards else "has shards."
            )
        return [folder / WHOLE]
    weight_map = read_json(folder / INDEX, limit=JSON_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not is_list_of_strings(list(weight_map.values())):
        raise file_error(INDEX, "weight_map is not an object of file names.")
    named = set(weight_map.values())
    if bad := sorted(name for name in named if not SHARD.fullmatch(name)):
        raise file_error(INDEX, shortened(f"weight_map names {bad[0]!r}, which is not a shard."))
    if named != shards:
        name = sorted(named ^ shards)[0]
        raise file_error(INDEX, f"{name} is {'missing' if name in named else 'not in weight_map'}.")
    for name in sorted(named):
        inside = {tensor for tensor, file in weight_map.items() if file == name}
        if inside != read_shapes(folder / name).keys():
            raise file_error(INDEX, f"weight_map does not list the tensors of {name}.")
    return [folder / name for name in sorted(named)]


def check_sizes(config: dict[str, Any], tensors: Tensors) -> None:
    """Raise RecipeError for a size in config.json that is larger than the weights allow.

    A layer has at least one tensor, and a width is at most the longest dimension of any tensor.
    """
    longest = max((size for _, shape in tensors.values() for size in shape), default=0)
    largest = max(longest, len(tensors))
    for name, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        limit = len(tensors) if "layer" in name and "norm" not in name else largest
        if SIZED.search(name) and not name.endswith(("token_id", "_size_cap")) and value > limit:
            text = f"{name} is {value!r}, but the weights have {len(tensors):,} tensors of up to "
            raise file_error("config.json", shortened(f"{text}{longest:,} rows or columns."))


def check_builds(folder: Path, recipe: Recipe, labels: tuple[str, ...], tensors: Tensors) -> None:
    """Raise RecipeError unless the weights are exactly those of the model of config.json.

    transformers builds the model on the meta device, which takes no memory, and compares.
    """
    with explain_library_errors("config.json", "cannot be built"):
        model, info = getattr(transformers, recipe.task.auto_class).from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            **recipe.task.model_kwargs(labels),
        )
    lines = [f"{name!r} is missing." for name in info["missing_keys"]]
    lines += [f"{name!r} is not in the model." for name in info["unexpected_keys"]]
    for name, stored, built in info["mismatched_keys"]:
        lines.append(f"{name!r} has shape {tuple(stored)}, but the model's is {tuple(built)}.")
    raise_first_lines(WHOLE, lines)
    floats = {n for n, t in model.state_dict().items() if t.is_floating_point()}
    for name, (dtype, _) in tensors.items():
        if name in floats and dtype not in FLOATS:
            raise file_error(WHOLE, f"{name!r} has data type {dtype}, not a float.")


def check_packed(folder: Path, recipe: Recipe, labels: tuple[str, ...], tensors: Tensors) -> None:
    """Raise RecipeError unless 4-bit weights are those of the model of config.json.

    transformers cannot read them on the meta device: names and sizes are compared with those of
    the model in full precision. A byte holds two numbers; other tensors have what unpacks them.
    """
    with explain_library_errors("config.json", "cannot be built"), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, **recipe.task.model_kwargs(labels))
        config.quantization_config = None
        model = getattr(transformers, recipe.task.auto_class).from_config(config)
    expected = {name: tuple(each.shape) for name, each in model.named_parameters()}
    packed = {name: shape for name, (_, shape) in tensors.items() if f"{name}.absmax" in tensors}
    beside = {name for name in tensors if name.rpartition(".weight.")[0] + ".weight" in packed}
    lines = [f"{name!r} is missing." for name in expected.keys() - tensors.keys()]
    lines += [f"{n!r} is not in the model." for n in tensors.keys() - expected.keys() - beside]
    for name in expected.keys() & tensors.keys():
        numbers, stored = math.prod(expected[name]), tensors[name][1]
        right = math.prod(stored) * 2 == numbers if name in packed else stored == expected[name]
        if not right:
            lines.append(f"{name!r} has shape {stored}, and the model's is {expected[name]}.")
    raise_first_lines(WHOLE, lines)


def raise_first_lines(file: str, lines: list[str]) -> None:
    """Raise RecipeError with the first five lines, if there are any."""
    if lines:
        more = f" And {len(lines) - 5:,} more." if len(lines) > 5 else ""
        shown = sorted(lines)[:5]
        shown[-1] += more
        raise RecipeError([Problem(file, shortened(line)) for line in shown])


@contextmanager
def explain_library_errors(file: str, what: str) -> Iterator[None]:
    """Turn what a library raises on a file of a result into a RecipeError; silence its warnings."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # libraries raise errors of any class on files of nonsense
        text = f"{what}: {type(error).__name__}: {shortened(str(error))}"
        raise file_error(file, text) from error
    finally:
        transformers_logging.set_verbosity(level)
