"""The main flow: from a recipe to a measured, saved, published result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, set_seed

from pipelines.collector import collector_without_imports
from pipelines.console import json_lines, say
from pipelines.data.splits import Splits, list_rejected, num_skipped
from pipelines.errors import Preempted
from pipelines.final_score import check_finite, evaluate_at_the_end, first_score, keep_weights
from pipelines.finished import (
    finish_again,
    finished_result,
    inputs_changed,
    mark_started,
    not_published,
    try_to_report,
    unmark_started,
)
from pipelines.html_report.statistics import make_statistics
from pipelines.hub.publish import check_reload, publish_finished
from pipelines.inputs import Encoded, encode, pin_and_check, read_rows
from pipelines.log import log_to_folder
from pipelines.models.build import build_model
from pipelines.models.compiling import compile_blocks
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import Store
from pipelines.process import prepare_process, returning_freed_memory
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.last_screen import print_last_screen
from pipelines.reporting.progress import RunProgress
from pipelines.reporting.report import print_report, print_score
from pipelines.reporting.run_files import STATISTICS
from pipelines.reporting.step_log import MetricsFile
from pipelines.results.disk import explain_disk_errors
from pipelines.results.files import write_whole
from pipelines.results.lock import lock_run_folder
from pipelines.results.names import public_name
from pipelines.results.save import FinishedRun, save
from pipelines.samples import Sampler
from pipelines.training.build import build_trainer
from pipelines.training.checkpoints import check_space, num_trained
from pipelines.training.identity import identity_of
from pipelines.training.ranks import Ranks, joined_ranks
from pipelines.training.resume import delete_checkpoints, find_checkpoint, is_shared
from pipelines.training.running_engine import packed_storage
from pipelines.training.signals import AGAIN, StopAtSignal, StopSignals
from pipelines.training.start import start_together
from pipelines.training.stream_batches import check_lanes, print_drawn
from pipelines.training.trackers import tracked
from pipelines.training.trainer import RecipeTrainer

NOT_STARTED = f"stopped before a step was made; {AGAIN}"


def run(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train, evaluate, save and publish; return the metrics.

    A finished result of the same recipe and rows is not trained again. `callbacks` are
    transformers'; each sees the training, after the run's own log. Raise RecipeError if the folder
    holds a result of another recipe or other rows, unless `recipe.overwrite`; RankError where the
    ranks of a run differ, or where one ends or is lost.
    """
    started = time.perf_counter()
    with StopSignals() as signals, ExitStack() as stack:
        with signals.ending(NOT_STARTED):
            ranks = stack.enter_context(joined_ranks(recipe.train.ddp_timeout))
            world_size = start_together(ranks, recipe)
        json_wanted = recipe.log_format == "json"
        with prepare_process(), collector_without_imports(), json_lines(json_wanted):
            with signals.ending(NOT_STARTED):
                recipe = pin_and_check(recipe)
                check_lanes(recipe.task.dataset, world_size, recipe.train.dataloader_num_workers)
            log = log_to_folder(recipe.folder) if PartialState().is_main_process else nullcontext()
            shown = RunProgress(started)
            with lock_run_folder(recipe.folder), log, shown as progress, ranks.ending_together():
                return run_in_folder(recipe, ranks, progress, signals, callbacks)


def run_in_folder(
    recipe: Recipe,
    ranks: Ranks,
    progress: RunProgress,
    signals: StopSignals,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    """Do what `run` does, in a folder that no other run uses."""
    store = Store(progress)
    rejected = recipe.folder / "rejected.jsonl" if PartialState().is_main_process else None
    with signals.ending(NOT_STARTED), returning_freed_memory():
        set_seed(recipe.train.seed)
        with progress.phase("reading", "reading rows"):
            recipe, raw = read_rows(recipe, store)
            finished = finished_result(recipe, ranks)
            splits, labels = check_prepared(recipe.task, raw, rejected, store)
        changed = finished and inputs_changed(recipe, finished, splits)
        if finished is not None and not (recipe.overwrite and changed):
            return finish_again(recipe, finished, splits, signals, ranks)
        prepared = prepare(recipe, splits, labels, ranks, progress, callbacks)
        if splits.train.streamed:
            list_rejected(splits, rejected, again=prepared.checkpoint is None)
    finished_run = train_and_score(recipe, prepared, splits, labels, signals)
    metrics = finished_run.metrics | num_skipped(splits, rejected)
    metrics["seconds"] = round(progress.elapsed(), 1)
    trainer = prepared.trainer
    with progress.phase("saving", "saving the result"):
        finished_run = replace(finished_run, metrics=metrics, timing=progress.timing())
        save(trainer, finished_run, trainer.whole_state())
    print_score(recipe.name, metrics)
    clean_up(recipe, trainer)
    try_to_report(recipe.folder)
    if recipe.push_to:
        with progress.phase("publishing", f"publishing {recipe.push_to}"):
            publish_reloaded(recipe, recipe.push_to, prepared, signals)
    unmark_started(recipe)
    ranks.wait()
    print_last_screen(recipe, metrics)
    return metrics


def train_and_score(
    recipe: Recipe,
    prepared: Prepared,
    splits: Splits,
    labels: tuple[str, ...],
    signals: StopSignals,
) -> FinishedRun:
    """Train, and score the weights that the recipe keeps."""
    trainer = prepared.trainer
    mark_started(recipe, trainer.identity["run"])
    sampler = Sampler(recipe, trainer, prepared.encoded.tokenizer, splits.held_out, labels)
    if PartialState().is_main_process:
        write_statistics(recipe, prepared, splits)
    if prepared.checkpoint is None:
        sampler.write_before()
    with tracked(recipe, trainer, prepared.checkpoint):
        train_to_the_end(trainer, prepared.checkpoint, signals)
        splits = with_drawn(splits, trainer)
        kept = keep_weights(recipe, trainer)
        final = evaluate_at_the_end(trainer, splits, signals)
        metrics = final.metrics
        check_finite(metrics, trainer, splits.record["reported"])
    sampler.write_after(splits.record["reported"], final.rows)
    metrics["baseline"] = prepared.baseline or first_score(trainer, splits)
    return FinishedRun(
        recipe=recipe,
        tokenizer=prepared.encoded.tokenizer,
        labels=labels,
        metrics=metrics,
        rows=final.rows,
        splits=splits,
        kept=kept,
        tuned=final.tuned,
        identity=trainer.identity,
    )


def with_drawn(splits: Splits, trainer: RecipeTrainer) -> Splits:
    """Return the splits with the rows and tokens that a stream drew from each source."""
    if trainer.stream is None:
        return splits
    drawn = trainer.stream.drawn()
    print_drawn(drawn)
    sources = [each | {"path": public_name(each["path"])} for each in drawn]
    train = splits.record["train"] | {"sources": sources}
    return replace(splits, record=splits.record | {"train": train})


def write_statistics(recipe: Recipe, prepared: Prepared, splits: Splits) -> None:
    """Write what the rows are, for the report."""
    statistics = make_statistics(
        recipe.task,
        {"train": splits.train} | splits.scored,
        {"train": prepared.encoded.train, **prepared.encoded.scored},
        run=prepared.trainer.identity["run"],
        cautions=prepared.encoded.warnings,
        num_processes=PartialState().num_processes,
    )
    with explain_disk_errors(recipe.folder, num_bytes=0, advice=f"Make room and {AGAIN}"):
        write_whole(recipe.folder / STATISTICS, statistics)


def clean_up(recipe: Recipe, trainer: RecipeTrainer) -> None:
    """Delete the checkpoints of a run whose result is saved."""
    if not trainer.args.should_save:
        return
    try:
        delete_checkpoints(recipe.folder, run=trainer.identity["run"])
    except OSError as error:
        checkpoints = recipe.folder / "checkpoints"
        say(f"  {checkpoints} could not be deleted: {error.strerror}")


def publish_reloaded(
    recipe: Recipe, push_to: str, prepared: Prepared, signals: StopSignals
) -> None:
    """Publish a result that gives the logits of the trained model when it is loaded."""
    with signals.ending(not_published(recipe.folder)):
        with prepared.trainer.whole_model() as trained:
            if PartialState().is_main_process:
                pad_token_id = int(prepared.encoded.tokenizer.pad_token_id or 0)
                rows = prepared.trainer.splits["eval"].features.dataset[:8]
                batch = recipe.task.collate(pad_token_id)(rows)
                check_reload(trained, prepared.trainer.accelerator, recipe.folder, batch)
        if PartialState().is_main_process:
            publish_finished(recipe.folder, push_to, public=recipe.public)


@dataclass(frozen=True)
class Prepared:
    """A trainer and what else a run needs after the training."""

    trainer: RecipeTrainer
    encoded: Encoded
    checkpoint: Path | None
    baseline: dict[str, float] | None


def prepare(
    recipe: Recipe,
    splits: Splits,
    labels: tuple[str, ...],
    ranks: Ranks,
    progress: RunProgress,
    callbacks: Sequence[TrainerCallback],
) -> Prepared:
    """Encode the rows, build model and trainer, and look for the checkpoint to resume from.

    Every rank does so. Raise RankError where they have other rows, or would resume elsewhere.
    """
    world_size = PartialState().num_processes
    identity = identity_of(recipe, splits, world_size)
    ranks.compare(identity)
    with progress.phase("encoding", "tokenising"):
        encoded = encode(recipe, splits, labels, Store(progress))
    train, scored = encoded.train, encoded.scored
    print_report(recipe, world_size, splits, encoded.features, encoded.warnings)
    with progress.phase("model", "loading the model"):
        model = build_model(recipe, encoded.tokenizer, labels, storage=packed_storage())
        encoded.check_vocabulary(model)
        check_space(recipe, num_trained(model))
    shared = is_shared(recipe.folder, ranks)
    checkpoint, identity = find_checkpoint(recipe, identity, ranks, shared=shared)
    baseline = recipe.task.baseline(train, scored[recipe.task.dataset.reported_split])
    trainer = build_trainer(
        recipe,
        model,
        encoded.tokenizer,
        train=train,
        scored=scored,
        labels=labels,
        progress=progress,
        identity=identity,
        eval_on_start=baseline is None and checkpoint is None,
        save_on_each_node=not shared,
        callbacks=(MetricsFile(recipe.folder), *callbacks),
    )
    if recipe.train.torch_compile:
        compile_blocks(model, one_length=recipe.task.rows_have_one_length)
    return Prepared(trainer, encoded, checkpoint, baseline)


def train_to_the_end(trainer: RecipeTrainer, checkpoint: Path | None, signals: StopSignals) -> None:
    """Train, from a checkpoint if there is one. Raise Preempted where a signal stops it."""
    if trainer.stream:
        for line in trainer.stream.describe():
            say(line)
    stopping = StopAtSignal(signals)
    trainer.add_callback(stopping)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stopping.stopped:
        step = trainer.state.global_step
        raise Preempted(f"stopped at step {step:,} with a checkpoint; {AGAIN}")
