"""Save a result so that it loads with its labels."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from pipelines.data.splits import Splits
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.reporting.plots import plot_training
from pipelines.results.base_weights import SHAPE, checkpoint_folder, weights_sha256
from pipelines.results.disk import explain_disk_errors
from pipelines.results.files import install_staged_result, make_stage, write_manifest
from pipelines.results.names import public_name
from pipelines.results.predictions import write_predictions
from pipelines.tasks.base import RowResult

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a result is saved from, in addition to the trainer and its model.

    `identity` identifies the run and its rows, and lists what changed when it was resumed. `tuned`
    are the options that the validation rows decided, see `Task.tune`.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    metrics: dict[str, Any]
    rows: Sequence[RowResult]
    """Results of the rows that the metrics are of; only rank 0 needs them."""
    splits: Splits
    kept: dict[str, Any] | None
    """Which weights were chosen by the validation rows, if any were."""
    identity: dict[str, Any]
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase of the run so far."""
    tuned: dict[str, Any] = field(default_factory=dict)


def save(
    trainer: Trainer, finished: FinishedRun, state: dict[str, torch.Tensor] | None = None
) -> Path:
    """Write a result and put it in the place of the one before, whole; return its folder.

    Rank 0 alone writes; `state` has the weights where its model has only a part of them. The result
    has the adapter or the model, the tokenizer, recipe.json, task.json, predictions.jsonl and the
    curve. Raise CheckpointError for an error of the disk; the result before it is then still whole.
    """
    recipe = finished.recipe
    folder = recipe.folder
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        saved = [p for p in model.parameters() if recipe.lora is None or p.requires_grad]
        advice = (
            "A result that was there before, and the last checkpoint, are whole. Make room and "
            "run the same command again to resume."
        )
        num_bytes = sum(p.numel() * p.element_size() for p in saved)
        with explain_disk_errors(folder, num_bytes=num_bytes, advice=advice):
            write_result(make_stage(folder), trainer, finished, state)
        advice = "The same command puts the new result in place."
        with explain_disk_errors(folder, num_bytes=0, advice=advice):
            install_staged_result(folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def write_result(
    stage: Path,
    trainer: Trainer,
    finished: FinishedRun,
    state: dict[str, torch.Tensor] | None,
) -> None:
    """Write the files of a result to an empty folder, task.json last."""
    recipe, tokenizer = finished.recipe, finished.tokenizer
    model = trainer.accelerator.unwrap_model(trainer.model)
    if recipe.lora is None:
        model.config.use_cache = True
    model.save_pretrained(stage, state_dict=state)
    if state is not None and recipe.lora is None:
        name_dtype(model, stage)
    (stage / "README.md").unlink(missing_ok=True)  # PEFT's; `publish` writes the card
    tokenizer.save_pretrained(stage)
    compact_tokenizer_file(tokenizer, stage)
    text = replace(recipe, overwrite=False).to_json()
    (stage / "recipe.json").write_text(text, encoding="utf-8")
    write_predictions(stage, finished.rows)
    plot_training(trainer.state.log_history, stage / "training_curve.png")
    write_manifest(stage, make_sidecar(trainer, model, finished))


def name_dtype(model: Any, folder: Path) -> None:
    """Let config.json name the type of the weights that were gathered.

    transformers names that of the model, which DeepSpeed may have turned into bfloat16.
    """
    config = copy.deepcopy(model.config)
    config.dtype = "float32"
    config.save_pretrained(folder)


def make_sidecar(trainer: Trainer, model: Any, finished: FinishedRun) -> dict[str, Any]:
    """Return the content of task.json, without its list of files."""
    recipe, tokenizer, identity = finished.recipe, finished.tokenizer, finished.identity
    test = finished.splits.test
    return {
        "task": type(recipe.task).__name__,
        "labels": list(finished.labels),
        **finished.tuned,
        "pad_token_id": tokenizer.pad_token_id,
        "max_length": tokenizer.model_max_length,
        "base": describe_base(recipe, model),
        "dataset": {
            "path": public_name(recipe.task.dataset.path),
            "name": recipe.task.dataset.name,
            "revision": recipe.task.dataset.revision,
            "train_rows_sha256": identity["data"]["train"],
            "eval_rows_sha256": finished.splits.held_out.fingerprint(),
            **({} if test is None else {"test_rows_sha256": test.fingerprint()}),
            "splits": finished.splits.record,
        },
        "sha256_of": identity["sha256_of"],
        "run": identity["run"],
        "changed_on_resume": identity["changed"],
        "hardware": describe_hardware(trainer),
        "versions": {name: version(name) for name in LIBRARIES},
        "metrics": finished.metrics,
        "timing": finished.timing,
        **({} if finished.kept is None else {"kept": finished.kept}),
    }


def compact_tokenizer_file(tokenizer: Any, folder: Path) -> None:
    """Rewrite tokenizer.json without its indentation: GPT-2's shrinks from 3.6 to 1.6 MB.

    Slow tokenizers have no such file.
    """
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def describe_base(recipe: Recipe, model: Any) -> dict[str, Any] | None:
    """Return what identifies an adapter's base: its name, revision, hash and shape."""
    if recipe.lora is None:
        return None
    assert isinstance(recipe.model, Model)
    config = model.get_base_model().config
    identifiers: dict[str, Any] = {
        "name_or_path": recipe.model.name_or_path,
        "revision": recipe.model.revision,
        "sha256": weights_sha256(checkpoint_folder(recipe.model)),
    }
    return identifiers | {name: getattr(config, name) for name in SHAPE}


def describe_hardware(trainer: Trainer) -> str:
    """Return the GPUs, or the CPU, that the run computed on."""
    device = trainer.accelerator.device
    if device.type == "cuda":
        return f"{trainer.accelerator.num_processes} x {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
