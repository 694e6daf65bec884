"""The main flow: from a recipe to a measured, saved, published result."""

from __future__ import annotations

import gc
import math
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, set_seed

from pipelines.checkpoints import (
    StopSignals,
    all_checkpoints,
    check_space,
    delete,
    identity_of,
    locked,
    newest_verified,
)
from pipelines.cpu import slow_precision
from pipelines.data import check_splits, check_vocabulary, load_splits, num_skipped
from pipelines.errors import NonFiniteError, Preempted
from pipelines.hub import pin, save
from pipelines.log import logged
from pipelines.models import build_model, load_tokenizer
from pipelines.publish import check_destination, check_reload, publish_finished
from pipelines.recipe import Recipe
from pipelines.report import print_report, print_score, quiet
from pipelines.tasks.base import Examples
from pipelines.training import build_trainer, check_world_size, score_of


def run(recipe: Recipe) -> dict[str, Any]:
    """Train, evaluate, save and publish; return the metrics."""
    started = time.perf_counter()
    world_size = check_world_size()
    quiet()
    recipe = pin(recipe)
    if recipe.push_to and PartialState().is_main_process:
        check_destination(recipe, recipe.push_to, public=recipe.public)
    log = logged(recipe.folder) if PartialState().is_main_process else nullcontext()
    # Python's collector then passes over the half million objects of the imports
    gc.freeze()
    try:
        with locked(recipe.folder), log:
            return run_in_folder(recipe, world_size, started)
    finally:
        gc.unfreeze()


def run_in_folder(recipe: Recipe, world_size: int, started: float) -> dict[str, Any]:
    """Do what `run` does, in a folder that no other run uses."""
    set_seed(recipe.train.seed)
    task = recipe.task
    rejected = recipe.folder / "rejected.jsonl" if PartialState().is_main_process else None
    splits, labels = check_splits(task, load_splits(task.dataset), rejected)
    tokenizer = load_tokenizer(
        recipe.model,
        texts(splits.train),
        max_length=task.length,
        chat_template=task.chat_template,
    )
    train = task.features(splits.train, tokenizer, labels, training=True)
    held_out = task.features(splits.held_out, tokenizer, labels, training=False)
    cautions = [*splits.warnings()]
    if PartialState().device.type == "cpu":
        cautions += slow_precision()
    print_report(recipe, world_size, train, held_out, cautions)

    model = build_model(recipe, tokenizer, labels)
    for examples in (splits.train, splits.held_out):
        check_vocabulary(examples, tokenizer, model.get_input_embeddings().num_embeddings)
    check_space(recipe, model)
    identity = identity_of(recipe, splits, world_size)
    checkpoints = recipe.folder / "checkpoints"
    checkpoint = newest_verified(checkpoints, identity, recipe.allow_changed)
    baseline = task.baseline(train, held_out)
    trainer = build_trainer(
        recipe,
        model,
        tokenizer,
        train=train,
        held_out=held_out,
        labels=labels,
        identity=identity,
        eval_on_start=baseline is None and checkpoint is None,
    )
    train_to_the_end(trainer, checkpoint)
    metrics = score_of(trainer.evaluate())
    check_finite(metrics)
    metrics["baseline"] = baseline or {"before training": first_score(trainer.state.log_history)}
    metrics |= num_skipped(splits, rejected)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    folder = save(trainer, recipe, tokenizer, labels, metrics, splits.held_out)
    print_score(recipe.name, metrics)
    if PartialState().is_main_process:
        for checkpoint in all_checkpoints(checkpoints):  # the result is on disk
            delete(checkpoint)
        shutil.rmtree(checkpoints, ignore_errors=True)
    if recipe.push_to and PartialState().is_main_process:
        batch = task.collate(int(tokenizer.pad_token_id or 0))(held_out.dataset[:8])
        check_reload(trainer, folder, batch)
        publish_finished(folder, recipe.push_to, public=recipe.public)
    trainer.accelerator.wait_for_everyone()
    return metrics


def train_to_the_end(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train, from a checkpoint if there is one. Raise Preempted where a signal stops it."""
    signals = StopSignals()
    trainer.add_callback(signals)
    with signals.caught():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if signals.stopped:
        step = trainer.state.global_step
        raise Preempted(f"stopped at step {step:,} with a checkpoint; the same command goes on.")


def first_score(log: list[dict[str, Any]]) -> float:
    """Return the primary metric of the evaluation before training; checkpoints hold the log too."""
    before = next(row for row in log if "eval_primary" in row)
    assert before["step"] == 0
    return before[f"eval_{before['eval_primary']}"]


def check_finite(metrics: dict[str, Any]) -> None:
    """Raise NonFiniteError for a score that is no number."""
    primary = metrics["primary"]
    for name in (primary, "loss"):
        if name in metrics and not math.isfinite(metrics[name]):
            raise NonFiniteError(f"the evaluation's {name} is {metrics[name]}; nothing was saved.")


def texts(examples: Examples) -> Any:
    """Yield every text of the training rows, to train a tokenizer on."""
    for row in examples.rows:
        yield from (value for value in row.values() if isinstance(value, str))
