"""Refuse checkpoints and tokenizers that the libraries would load as something else.

transformers fills tensors that a checkpoint lacks with random numbers, drops those that it does
not know, and makes a tokenizer without vocabulary where the files of one are missing. It says so
at most in a warning. Here each is an error that names what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from pipelines.errors import Problem, RecipeError
from pipelines.models.download import ensure_downloaded
from pipelines.models.upstream import has_head_for
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.tasks.base import Task

LISTED = 3  # tensors that a message names
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
STALE_BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$|inv_freq$|position_ids$")
"""Buffers that older checkpoints hold and that models now compute: no weights."""


# Checkpoints


def check_recipe_model(recipe: Recipe) -> None:
    """Raise RecipeError, before any data is read, for a base that cannot be trained."""
    if isinstance(recipe.model, Model):
        read_config(recipe.model, recipe.task, "model.name_or_path")


def read_config(model: Model, task: Task | None, path: str) -> Any:
    """Return a checkpoint's config.

    Raise RecipeError, which names `path`, unless transformers itself has the model, with the head
    of `task`, and its weights are safetensors.
    """
    name = model.name_or_path

    def refused(message: str) -> RecipeError:
        return RecipeError([Problem(path, message)])

    check_adapter_folder(model, path)
    ensure_downloaded(model, path=path, weights=False)
    try:
        config = AutoConfig.from_pretrained(name, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            message = "needs Python code of its own (auto_map), which is never run here."
            raise refused(f"{name!r} {message} Use a family that transformers has.") from error
        missing = Path(name).is_dir() and not (Path(name) / "config.json").exists()
        message = missing_config(Path(name)) if missing else " ".join(str(error).split())
        raise refused(f"{name!r} cannot be loaded: {message}") from error
    if task is not None:
        if not has_head_for(task.auto_class, config):
            raise refused(
                f"{name!r} cannot be loaded for {type(task).__name__}: transformers has no "
                f"{task.auto_class} of the family {config.model_type!r}. Use another family, such "
                "as gpt2, gpt_neo or opt."
            )
        if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")):
            raise refused(f"{name!r} cannot be loaded: {missing_weights(Path(name))}")
    return config


def check_adapter_folder(model: Model, path: str) -> None:
    """Raise RecipeError for an adapter: transformers would load the base that it names instead."""
    adapter_config = find_adapter_config_file(model.name_or_path, revision=model.revision)
    if adapter_config is None:
        return
    name = model.name_or_path
    if (Path(name) / "config.json").exists():
        message = f"{name!r} holds both a model (config.json) and an adapter "
        message += "(adapter_config.json). Move the files of one of them away."
    else:
        message = f"{name!r} is an adapter, not a whole model. Merge it into its base, with "
        message += f"`gpt2-recipes merge {name} OUT` if a run wrote it, and name OUT."
    raise RecipeError([Problem(path, message)])


def missing_config(folder: Path) -> str:
    """Say why a folder without config.json is no checkpoint, and what to do."""
    files = sorted(file.name for file in folder.iterdir())
    message = "the folder has no config.json" + (f" ({', '.join(files[:8])})." if files else ".")
    if any(name.endswith((".gguf", ".onnx")) for name in files):
        return f"{message} GGUF and ONNX files cannot be trained; use the original checkpoint."
    if HUB_ID.fullmatch(str(folder)):
        message += f" It hides the Hub repository {str(folder)!r}: rename or delete the folder to "
        return f"{message}load that."
    return f"{message} Name the folder of a checkpoint, or a Hub id."


def missing_weights(folder: Path) -> str:
    """Explain what a folder without safetensors holds instead, and what to do."""
    files = sorted(file.name for file in folder.iterdir())
    message = "it has no model.safetensors"
    pickled = [name for name in files if name.endswith(PICKLED) and "training_args" not in name]
    if pickled:
        message += f", only {', '.join(pickled[:LISTED])}. Such files can run code and are not read"
        return f"{message}; load and save the model once with transformers to convert it."
    others = [name for name in files if name.endswith((".gguf", ".onnx"))]
    if others or any((folder / "onnx").glob("*.onnx")):
        return f"{message}. GGUF and ONNX files cannot be trained; use the original checkpoint."
    return f"{message}. Copy the weights there."


def check_weights(
    base: PreTrainedModel, loading: dict[str, Any], *, name: str, path: str, new_head: bool
) -> None:
    """Raise RecipeError unless every tensor of a model came from its checkpoint, and the reverse.

    `loading` is what `from_pretrained` returns with `output_loading_info`. With `new_head` the
    tensors outside the body may be new. The head of another task is dropped. Buffers that a model
    computes by itself are not weights.
    """
    misshapen = [*loading["mismatched_keys"], *misshapen_quantized(base)]
    problems = differing_tensors(
        name,
        "its config.json",
        missing=[k for k in loading["missing_keys"] if not (new_head and in_head(base, k))],
        unknown=dropped_weights(base, loading["unexpected_keys"]),
        misshapen=[
            f"{key} {tuple(found)}, not {tuple(expected)}"
            for key, found, expected in misshapen
            if not (new_head and in_head(base, key))
        ],
    )
    if problems:
        text = "The copy is not complete, or config.json is that of another model."
        missing, unexpected = loading["missing_keys"], loading["unexpected_keys"]
        if in_another_body(base, missing, unexpected):
            problems = problems[:1]
            text = f"transformers' {type(base).__name__} names them otherwise, and does not read "
            text += "them. Use another family, such as gpt2, for this task."
        raise RecipeError([Problem(path, f"{problem}. {text}") for problem in problems])


def differing_tensors(
    name: str,
    described: str,
    *,
    missing: Collection[str],
    unknown: Collection[str],
    misshapen: Collection[str],
) -> list[str]:
    """Say which tensors of a file are not those that are `described`."""
    kinds = [
        (f"{name!r} lacks {{}} tensors of {described}", missing),
        (f"{name!r} has {{}} tensors that {described} does not describe", unknown),
        (f"{name!r} has {{}} tensors of another shape than {described} says", misshapen),
    ]
    return [f"{text.format(f'{len(keys):,}')}: {some(keys)}" for text, keys in kinds if keys]


def some(names: Iterable[str]) -> str:
    """Name the first few of several tensors."""
    names = sorted(names)
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def in_head(model: PreTrainedModel, key: str) -> bool:
    """Tell a tensor next to the body of a model from one inside it."""
    return model.base_model is not model and not key.startswith(f"{model.base_model_prefix}.")


def in_another_body(
    model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]
) -> bool:
    """Tell whether all tensors that the body lacks are in the checkpoint by another prefix.

    LlamaForQuestionAnswering has its body in `transformer`, other Llama models in `model`.
    """
    lacking = {key.partition(".")[2] for key in missing if not in_head(model, key)}
    return bool(lacking) and lacking <= {key.partition(".")[2] for key in unexpected}


def dropped_weights(model: PreTrainedModel, keys: Collection[str]) -> list[str]:
    """Return which of the tensors that are not loaded are weights of the body.

    Checkpoints of a body alone name its tensors without the prefix.
    """
    parts = {name.split(".")[0] for name in model.base_model.state_dict()}
    buffers = {name for name, _ in model.named_buffers()}
    return [
        key
        for key in keys
        if not (key in buffers or STALE_BUFFERS.search(key))
        and (key.split(".")[0] in parts or not in_head(model, key))
    ]


def misshapen_quantized(model: PreTrainedModel) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both shapes of each quantised weight of another shape than its layer.

    transformers does not compare them.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            state = getattr(module.weight, "quant_state", None)
            found = tuple(module.weight.shape if state is None else state.shape)
            expected = (module.out_features, module.in_features)
            if found != expected:
                yield f"{name}.weight", found, expected


def loading_notes(
    base: PreTrainedModel, loading: dict[str, Any], given: Any, labels: tuple[str, ...]
) -> Iterator[str]:
    """Describe what of a base is not as it was saved: its own code, or the head of the task.

    `given` is the base's own config.
    """
    if getattr(given, "auto_map", None):
        yield f"model: its own code is not run; this is transformers' own {given.model_type}"
    for key, found, expected in sorted(loading["mismatched_keys"]):
        yield f"head: {key} of the base is {tuple(found)}; a new one, {tuple(expected)}, is trained"
    changed = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    kept = [k for k in base.state_dict() if in_head(base, k) and k not in changed]
    names = tuple(given.id2label[i] for i in sorted(given.id2label or {}))
    if labels and kept and not any(in_head(base, key) for key in changed) and names != labels:
        yield f"head: that of the base is kept; its {listed(names)} become {listed(labels)}"


def listed(names: tuple[str, ...]) -> str:
    """Name labels, the first ten of many."""
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def check_finite(model: torch.nn.Module, *, name: str, path: str) -> None:
    """Raise RecipeError that names the tensors with a NaN or Inf, which packed ones have not."""
    packed = {key for key, each in model.named_parameters() if hasattr(each, "quant_state")}
    wrong = [
        key
        for key, tensor in model.state_dict().items()
        if key not in packed
        and tensor.is_floating_point()
        and not tensor.sum(dtype=torch.float32).isfinite()
    ]
    if wrong:
        message = f"{name!r} has {len(wrong):,} tensors that are not finite (NaN or Inf): "
        message += f"{some(wrong)}."
        raise RecipeError([Problem(path, f"{message} Use an undamaged copy.")])


# Adapters


# Tokenizers


# Token ids and embeddings
