"""Check a downloaded result against its recipe before anything is built from it.

Nothing here runs code of a result, and every size that a file states is bounded before it costs
memory.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from pipelines.errors import NonFiniteError, Problem, RecipeError
from pipelines.models import chat_template as render_template
from pipelines.models.adapters import lora_config
from pipelines.models.quantization import HEADS
from pipelines.models.tokenizer_checks import read_tokenizer
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import shortened
from pipelines.recipe.values import Model, Scratch
from pipelines.results.sidecar import file_error, read_json, read_sidecar

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
JSON_BYTES = 1 << 24
TOKENIZER_BYTES = 1 << 27
TEMPLATE_BYTES = 1 << 18
FLOATS = ("F64", "F32", "F16", "BF16")
FETCHING = (  # fields by which transformers loads other code, kernels, files or formats of weights
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "attn_implementation",
    "auto_map",
    "compression_config",
    "custom_generate",
    "custom_pipelines",
    "experts_implementation",
    "fast_tokenizer_files",
    "fusion_config",
    "gguf_file",
    "kernel_config",
    "quantization_config",
    "tokenizer_file",
    "transformers_weights",
    "use_kernels",
    "vocab_file",
)
SIZED = re.compile(r"layer|expert|block|head|hidden|embd|inner|intermediate|vocab|width|d_model")
READ = (".json", ".safetensors", ".jinja", ".txt")
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
Tensors = dict[str, tuple[str, tuple[int, ...]]]  # data type and shape of each


def check_result(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return recipe and sidecar of a result whose files agree with each other and with the recipe.

    Raise RecipeError, which names file and field, for others, and NonFiniteError for weights that
    are not finite.
    """
    check_files(folder)
    recipe, sidecar = Recipe.from_file(folder / "recipe.json"), read_sidecar(folder / "task.json")
    check_sidecar(recipe, sidecar)
    if recipe.lora is None:
        config = read_model_config(folder)
        check_tokenizer_files(folder, recipe, config.get("vocab_size"))
        check_model_files(folder, recipe, config, tuple(sidecar["labels"]))
    else:
        check_tokenizer_files(folder, recipe, sidecar["base"]["vocab_size"])
        check_adapter_config(folder, recipe)
        tensors = read_tensors(folder / ADAPTER[1])
        for name, (dtype, _) in tensors.items():
            if dtype not in FLOATS:
                raise file_error(ADAPTER[1], f"{name!r} has data type {dtype}, not a float.")
        check_rank(recipe, tensors)
    return recipe, sidecar


def check_files(folder: Path) -> None:
    """Raise RecipeError for files that are missing, and for names that are not of files."""
    problems = []
    for file in sorted(folder.iterdir()):
        if file.suffix in READ and not file.is_file():  # a folder, a device, a link to nothing
            problems.append(Problem(file.name, "is not a file."))
    for name in ("recipe.json", "task.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            problems.append(Problem(name, f"is missing in {folder}."))
    if problems:
        raise RecipeError(problems)


# the sidecar and the tokenizer


def check_sidecar(recipe: Recipe, sidecar: dict[str, Any]) -> None:
    """Raise RecipeError for a task.json of another recipe."""
    problems = []
    labels, task = sidecar["labels"], recipe.task
    if sidecar["task"] != type(task).__name__:
        text = f"task is {sidecar['task']!r}, but the recipe's is {type(task).__name__!r}."
        problems.append(Problem("task.json", text))
    num_labels = task.model_kwargs(tuple(labels)).get("num_labels")
    with_labels = num_labels is not None and getattr(task, "problem_type", None) != "regression"
    if bool(labels) != with_labels:
        text = "has labels, but its task has none." if labels else "labels are missing."
        problems.append(Problem("task.json", text))
    base, model = sidecar["base"], recipe.model
    if (base is None) != (recipe.lora is None):
        text = "base is for an adapter, and the recipe has none." if base else "base is missing."
        problems.append(Problem("task.json", text))
    elif base is not None and isinstance(model, Model):
        for name in ("name_or_path", "revision"):
            if base[name] != getattr(model, name):
                text = f"base.{name} is {base[name]!r}, but the recipe's is "
                text = shortened(f"{text}{getattr(model, name)!r}.")
                problems.append(Problem("task.json", text))
    if problems:
        raise RecipeError(problems)


def check_tokenizer_files(folder: Path, recipe: Recipe, vocab_size: Any) -> None:
    """Raise RecipeError for files that make no tokenizer, or one of another model."""
    config = read_json(folder / "tokenizer_config.json", limit=JSON_BYTES)
    check_fetches_nothing(config, "tokenizer_config.json")
    for name in ("vocab.json", "special_tokens_map.json", "generation_config.json"):
        if (folder / name).is_file():
            check_fetches_nothing(read_json(folder / name, limit=TOKENIZER_BYTES), name)
    file = folder / "tokenizer.json"
    if file.is_file():
        vocab = read_json(file, limit=TOKENIZER_BYTES).get("model")
        vocab = vocab.get("vocab") if isinstance(vocab, dict) else None
        if not isinstance(vocab, dict | list) or not vocab:
            raise file_error(file.name, "model.vocab is missing.")
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(vocab):
            raise file_error(file.name, "model.vocab does not give each token an id of its own.")
        if type(vocab_size) is int and max(ids) >= vocab_size:
            raise file_error(
                file.name, f"has id {max(ids)}, but the model has {vocab_size} tokens."
            )
    elif getattr(
        getattr(transformers, str(config.get("tokenizer_class")), None), "vocab_files_names", True
    ):
        raise file_error("tokenizer.json", f"is missing in {folder}.")
    templates = [config.get("chat_template")]
    if (file := folder / TEMPLATES[0]).is_file():
        if file.stat().st_size > TEMPLATE_BYTES:
            raise file_error(file.name, f"is longer than {TEMPLATE_BYTES:,} bytes.")
        templates.append(file.read_text(encoding="utf-8", errors="replace"))
    for name, template in zip(reversed(TEMPLATES), templates, strict=False):
        if template not in (None, recipe.task.chat_template):
            check_template(name, template)


def check_template(file: str, template: Any) -> None:
    """Raise RecipeError for a chat template that needs too much time or memory to render."""
    if not isinstance(template, str) or len(template) > TEMPLATE_BYTES:
        raise file_error(
            file, f"its chat template is not a text of at most {TEMPLATE_BYTES:,} bytes."
        )
    if reason := template_error(template):
        raise file_error(file, f"its chat template cannot be used: {shortened(reason)}.")


@lru_cache
def template_error(template: str) -> str | None:
    """Return why a template cannot be rendered in bounded time and memory, or None."""
    tokens = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "pad_token")}
    document = json.dumps({"template": template, "tokens": tokens})
    command = [sys.executable, "-P", render_template.__file__]
    limit = 10 * render_template.SECONDS  # wall-clock time, as the machine may be busy
    try:
        done = subprocess.run(
            command, input=document, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"it was not rendered in {limit} seconds"
    if done.returncode < 0:
        return f"it was not rendered in {render_template.SECONDS} seconds"
    return (done.stderr.splitlines() or ["no memory"])[-1] if done.returncode else None


def load_result_tokenizer(folder: Path, sidecar: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checked result. Raise RecipeError for one of another result.

    transformers gives a special token that the vocabulary lacks a new id, for which the model has
    no embedding; that is an error too.
    """
    tokenizer = read_tokenizer(str(folder), None, path="tokenizer.json")
    recorded = {"pad_token_id": sidecar["pad_token_id"], "model_max_length": sidecar["max_length"]}
    for name, value in recorded.items():
        if getattr(tokenizer, name) != value:
            text = f"{name} is {getattr(tokenizer, name)!r}, but task.json has {value}."
            raise file_error("tokenizer_config.json", shortened(text))
    if tokenizer.eos_token_id is None:
        raise file_error("tokenizer_config.json", "eos_token is missing.")
    vocab_size = vocab_size_of(folder, sidecar)
    for name in ("bos_token", "eos_token", "unk_token"):
        token_id = getattr(tokenizer, f"{name}_id")
        if token_id is not None and token_id >= vocab_size:
            text = f"{name} {getattr(tokenizer, name)!r} is not one of the model's {vocab_size:,}."
            raise file_error("tokenizer_config.json", shortened(text))
    return tokenizer


def vocab_size_of(folder: Path, sidecar: dict[str, Any]) -> int:
    """Return the number of embeddings of a checked result; a large number if not in its files."""
    if sidecar["base"]:
        return int(sidecar["base"]["vocab_size"])
    return int(read_json(folder / "config.json", limit=JSON_BYTES).get("vocab_size", 1 << 31))


# adapters


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
    all_linear = recipe.lora.target_modules == ("all-linear",)  # PEFT writes the model's names
    expected = by_peft.to_dict() | {
        "base_model_name_or_path": recipe.model.name_or_path,
        "inference_mode": True,
    }
    problems = []
    for name, value in config.items():
        if not is_expected(name, value, expected, all_linear=all_linear):
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


def is_expected(name: str, value: Any, expected: dict[str, Any], *, all_linear: bool) -> bool:
    """Tell whether a field of adapter_config.json has the value that PEFT writes."""
    wanted = expected.get(name)
    match name:
        case "peft_version":
            return isinstance(value, str)
        case "fan_in_fan_out":
            return isinstance(value, bool)
        case "target_modules" if all_linear:
            return isinstance(value, list) and is_list_of_strings(value)
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


def is_list_of_strings(value: Any) -> bool:
    """Tell whether a value is a list or a set of strings."""
    return isinstance(value, list | set) and all(isinstance(each, str) for each in value)


def check_rank(recipe: Recipe, tensors: Tensors) -> None:
    """Raise RecipeError unless the adapter has the recipe's rank, before PEFT allocates it."""
    assert recipe.lora is not None
    for name, (_, shape) in tensors.items():
        if name.endswith((".lora_A.weight", ".lora_embedding_A")) and shape[:1] != (recipe.lora.r,):
            text = f"{name!r} has shape {shape}, but the recipe's rank is {recipe.lora.r}."
            raise file_error(ADAPTER[1], text)


def raise_first_lines(file: str, lines: list[str]) -> None:
    """Raise RecipeError with the first five lines, if there are any."""
    if lines:
        more = f" And {len(lines) - 5:,} more." if len(lines) > 5 else ""
        shown = sorted(lines)[:5]
        shown[-1] += more
        raise RecipeError([Problem(file, shortened(line)) for line in shown])


# whole models


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read a config.json. Raise RecipeError for an unknown model, or one that fetches code."""
    for name in ADAPTER:
        if (folder / name).exists():
            raise file_error(name, "is of an adapter, but the recipe's result is a whole model.")
    if not (folder / "config.json").is_file():
        raise file_error("config.json", f"is missing in {folder}.")
    config = read_json(folder / "config.json", limit=JSON_BYTES)
    check_fetches_nothing(config, "config.json")
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


def check_fetches_nothing(config: Any, file: str, but: tuple[str, ...] = ()) -> None:
    """Raise RecipeError for a field, at any depth, that makes the libraries load something else.

    `but` names fields that are allowed.
    """
    forbidden = [name for name in FETCHING if name not in but]
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if names := [name for name in forbidden if value.get(name) is not None]:
                raise file_error(file, f"{names[0]} is not allowed in a result. Remove it.")
            waiting += [each for each in value.values() if isinstance(each, dict | list)]
        elif isinstance(value, list):
            waiting += [each for each in value if isinstance(each, dict | list)]


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


# tensors


def read_shapes(file: Path) -> Tensors:
    """Return data types and shapes of the tensors of a file.

    safetensors checks its header: at most 100 MB, offsets inside the file, no gaps or overlaps.
    """
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise file_error(file.name, f"is damaged: {shortened(str(error))}") from None


def read_tensors(file: Path) -> Tensors:
    """Return data types and shapes of tensors. Raise NonFiniteError for NaN or Inf in them."""
    tensors = read_shapes(file)
    with safe_open(file, "pt") as opened:
        for name, (dtype, _) in tensors.items():
            if dtype not in FLOATS:
                continue
            tensor = opened.get_tensor(name)
            # a sum with a NaN or Inf is never finite; one of finite values may overflow
            if not tensor.sum().isfinite() and not tensor.isfinite().all():
                raise NonFiniteError(f"{file.name}: {name!r} holds values that are not finite.")
    return tensors


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
