"""What two runs must have in common, and which fields may change between a run and its resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.data.splits import Splits
from pipelines.data.stream import Stream
from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import suggest, to_json_value
from pipelines.results.base_weights import sha256_of_folders
from pipelines.training.engines import checkpoint_format

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
DATA = ("data.train", "data.eval", "data.test")
UNLISTED = ("lora", "quantization", "sha256_of")
"""Fields whose parts `check_allowed` knows of, though the recipe may have none."""
RESUMABLE: dict[str, str | None] = {
    # None: a change takes effect from the resumed step on. Otherwise why it cannot.
    # The longest entry that a field begins with decides.
    "name": None,
    "model": "the weights in the checkpoint come from the other model",
    "quantization": "the weights in the checkpoint were trained on the other base",
    "distillation": "the weights in the checkpoint were trained towards another teacher",
    "lora": "the weights in the checkpoint are those of the other adapter",
    "task": "what the checkpoint has learned and scored is the other task",
    # The rows are read again; whether they are others, data.train, .eval and .test tell.
    "task.dataset": None,
    "task.dataset.streaming": "a stream has another order of rows, in which the step has no place",
    "task.dataset.shuffle_buffer_size": "the place in the rows is that of a chunk of so many rows",
    "task.dataset.num_lanes": "the place in the rows is one for each lane",
    "task.dataset.mixed_with": "the rows that are still to come would be drawn from other sources",
    "task.dataset.weight": "the rows that are still to come would be drawn otherwise",
    "data": None,
    "sha256_of": "the folder that the recipe names has other files than when the run began",
    "train": "nothing makes a change of it take effect on resume",
    # The optimizer's groups and the schedule are built from the recipe (RecipeTrainer).
    "train.learning_rate": None,
    "train.warmup_steps": None,
    "train.lr_scheduler_type": None,
    "train.min_learning_rate": None,
    "train.weight_decay": None,
    "train.adam_beta1": None,
    "train.adam_beta2": None,
    "train.max_grad_norm": None,
    # The end and the intervals are the recipe's, not those of trainer_state.json (RecipeTrainer).
    "train.max_steps": None,
    "train.num_train_epochs": None,
    "train.logging_steps": None,
    "train.eval_steps": None,
    "train.save_steps": None,
    # The rows of a step stay the same.
    "train.per_device_train_batch_size": None,
    "train.per_device_eval_batch_size": None,
    "train.dataloader_num_workers": None,
    "train.activation_checkpointing": None,
    "train.torch_compile": None,
    "world_size": None,
    "checkpoint_format": "it is the form in which another engine wrote the checkpoint",
    "versions": None,
    "train.optim": "the state in the checkpoint is that of the other optimizer",
    "train.seed": "the rows that are still to come would follow another order",
    "train.global_batch_size": "the place in the rows is counted in steps of that many rows",
}


def comparable(recipe: Recipe) -> Any:
    """Return the fields of a recipe that make it the run that it is, as JSON."""
    bare = replace(
        recipe,
        output_dir=None,
        push_to=None,
        public=False,
        license=None,
        allow_changed=(),
        overwrite=False,
    )
    value = to_json_value(bare)
    del value["log_format"], value["train"]["report_to"], value["train"]["ddp_timeout"]
    return value


def identity_of(recipe: Recipe, splits: Splits, world_size: int) -> dict[str, Any]:
    """Return what two runs must have in common for one to resume from the other's checkpoint."""
    return {
        "recipe": comparable(recipe),
        "data": data_of(splits),
        "sha256_of": sha256_of_folders(recipe),
        "world_size": world_size,
        "checkpoint_format": checkpoint_format(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def data_of(splits: Splits) -> dict[str, str | None]:
    """Return the fingerprints of the rows."""
    train = splits.train
    read = train.rows if isinstance(train.rows, Stream) else train
    test = None if splits.test is None else splits.test.fingerprint()
    return {"train": read.fingerprint(), "eval": splits.held_out.fingerprint(), "test": test}


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield path and both values of every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            below = f"{path}.{key}".lstrip(".")
            yield from differences(before.get(key), now.get(key), below)
    elif before != (list(now) if isinstance(now, tuple) else now):
        yield path.removeprefix("recipe."), before, now


def why_fixed(path: str) -> str | None:
    """Return why a field cannot change when a run resumes, or None where it can."""
    parts = path.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((RESUMABLE[each] for each in prefixes if each in RESUMABLE), "it is not known")


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all leaves."""
    if not isinstance(value, dict):
        yield path
        return
    for key, item in value.items():
        yield from leaves(item, f"{path}.{key}".lstrip("."))


def check_allowed(recipe: Recipe) -> None:
    """Raise RecipeError for names in --allow-changed that are unknown or cannot change."""
    known = [*leaves(comparable(recipe)), *DATA, "world_size", "checkpoint_format"]
    known += [f"versions.{name}" for name in LIBRARIES]
    problems = []
    for path in recipe.allow_changed:
        reason = why_fixed(path)
        if reason is not None and (path in known or path.split(".")[0] in UNLISTED):
            text = f"{path} cannot change when a run resumes: {reason}. Use another --output-dir."
            problems.append(Problem("allow_changed", text))
        elif path not in known:
            problems.append(Problem("allow_changed", f"{path!r}: {suggest(path, known)}"))
    if problems:
        raise RecipeError(problems)


def check_resumed(
    folder: Path, before: dict[str, Any], now: dict[str, Any], allowed: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the changes that are allowed. Raise RecipeError with every other difference."""
    changed, problems = [], []
    for path, was, value in differences(before, now):
        if path in allowed:
            changed.append({"field": path, "before": was, "now": value})
            continue
        text = f"the run in {folder} had {was!r}, this one has {value!r}. "
        if reason := why_fixed(path):
            text += f"That cannot change when a run resumes: {reason}. Use another --output-dir, "
            text += "or start again with --overwrite."
        else:
            text += f"Use another --output-dir, or --allow-changed {path}."
        problems.append(Problem(path, text))
    if problems:
        raise RecipeError(problems)
    return changed


def check_same(folder: Path, changes: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise RecipeError, naming each field, for differences from a finished result."""
    problems = [
        Problem(path, f"the result in {folder} has {was!r}, this run has {value!r}.")
        for path, was, value in changes
    ]
    if problems:
        text = f"{folder} holds a finished result of other values. Use another --output-dir, or "
        raise RecipeError([*problems, Problem("output_dir", f"{text}replace it with --overwrite.")])
