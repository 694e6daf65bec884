"""The main flow: from a recipe to a measured, saved, published result."""

from __future__ import annotations

import gc
import math
import shutil
import time
import uuid
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase, set_seed

from pipelines.cautions import cautions
from pipelines.checkpoints import (
    MARKER,
    all_checkpoints,
    check_space,
    delete,
    locked,
    newest_verified,
    promised,
    read_marker,
    say,
)
from pipelines.cpu import slow_precision
from pipelines.data import Splits, check_splits, detected, load_splits, num_skipped
from pipelines.errors import NonFiniteError, Preempted, Problem, RecipeError
from pipelines.hub import pin, save
from pipelines.identity import (
    check_allowed,
    check_resumed,
    check_same,
    comparable,
    data_of,
    differences,
    identity_of,
)
from pipelines.log import logged
from pipelines.models import build_model, load_tokenizer
from pipelines.pretrained import (
    check_recipe_model,
    check_tokenizer,
    check_vocabulary,
    num_embeddings,
)
from pipelines.publish import check_destination, check_reload, publish_finished
from pipelines.recipe import Recipe
from pipelines.report import print_report, print_score, quietly
from pipelines.result import damage, files_of, read_manifest, settle
from pipelines.signals import AGAIN, Stopped, StopSignals
from pipelines.tasks.base import Examples, Features
from pipelines.tasks.chat_forms import texts_of
from pipelines.trainer import RecipeTrainer, StopAtSignal
from pipelines.training import build_trainer, check_world_size, score_of

STARTED = ".started"  # the run that has begun in a folder and not come to its end
NOT_STARTED = f"stopped before a step was made; {AGAIN}"


@quietly()
def run(recipe: Recipe) -> dict[str, Any]:
    """Train, evaluate, save and publish; return the metrics.

    A finished result of the same recipe and rows is not trained again. Raise RecipeError where the
    folder holds one of others, unless `recipe.overwrite`.
    """
    started = time.perf_counter()
    with StopSignals() as signals:
        with signals.ending(NOT_STARTED):
            world_size = check_world_size()
            check_allowed(recipe)
            recipe = pin(recipe)
            if recipe.push_to and PartialState().is_main_process:
                check_destination(recipe, recipe.push_to, public=recipe.public)
        log = logged(recipe.folder) if PartialState().is_main_process else nullcontext()
        # Python's collector then passes over the half million objects of the imports
        gc.freeze()
        try:
            with locked(recipe.folder), log:
                return run_in_folder(recipe, world_size, started, signals)
        finally:
            gc.unfreeze()


def run_in_folder(
    recipe: Recipe, world_size: int, started: float, signals: StopSignals
) -> dict[str, Any]:
    """Do what `run` does, in a folder that no other run uses."""
    rejected = recipe.folder / "rejected.jsonl" if PartialState().is_main_process else None
    with signals.ending(NOT_STARTED):
        set_seed(recipe.train.seed)
        check_recipe_model(recipe)
        raw = load_splits(recipe.task.dataset)
        recipe = replace(recipe, task=recipe.task.resolved(raw.train))
        finished = finished_result(recipe)
        splits, labels = check_splits(recipe.task, raw, rejected)
        if finished is not None and not (recipe.overwrite and rows_changed(finished, splits)):
            return finish_again(recipe, finished, splits, signals)
        prepared = prepare(recipe, splits, labels, world_size)
    trainer = prepared.trainer
    if PartialState().is_main_process:
        (recipe.folder / STARTED).write_text(trainer.identity["run"])
    train_to_the_end(trainer, prepared.checkpoint, signals)
    metrics = evaluate_at_the_end(trainer, signals)
    check_finite(metrics, trainer)
    metrics["baseline"] = prepared.baseline or first_score(trainer)
    metrics |= num_skipped(splits, rejected)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    folder = save(trainer, recipe, prepared.tokenizer, labels, metrics, splits)
    print_score(recipe.name, metrics)
    if PartialState().is_main_process:
        try:
            delete_checkpoints(folder, run=trainer.identity["run"])
        except OSError as error:
            say(f"  {folder / 'checkpoints'} could not be deleted: {error.strerror}")
    if recipe.push_to:
        with signals.ending(not_published(folder)):
            if PartialState().is_main_process:
                pad_token_id = int(prepared.tokenizer.pad_token_id or 0)
                batch = recipe.task.collate(pad_token_id)(prepared.held_out.dataset[:8])
                check_reload(trainer, folder, batch)
                publish_finished(folder, recipe.push_to, public=recipe.public)
    (folder / STARTED).unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()
    return metrics


@dataclass(frozen=True)
class Prepared:
    """A trainer and what else a run needs after the training."""

    trainer: RecipeTrainer
    tokenizer: PreTrainedTokenizerBase
    held_out: Features
    checkpoint: Path | None
    baseline: dict[str, float] | None


def prepare(recipe: Recipe, splits: Splits, labels: tuple[str, ...], world_size: int) -> Prepared:
    """Encode the rows, build model and trainer, and find the checkpoint to resume from."""
    task = recipe.task
    tokenizer = load_tokenizer(
        recipe.model,
        texts(splits.train),
        max_length=task.length,
        chat_template=task.chat_template,
    )
    unknown = [*check_tokenizer(tokenizer, task, splits.train)]
    train = task.features(splits.train, tokenizer, labels, training=True)
    held_out = task.features(splits.held_out, tokenizer, labels, training=False)
    task.check_scorable(held_out)
    found = [*detected(task.dataset), *cautions(recipe, splits, labels, train, held_out)]
    found += unknown
    if PartialState().device.type == "cpu":
        found += slow_precision()
    print_report(recipe, world_size, splits, train, held_out, found)

    model = build_model(recipe, tokenizer, labels)
    for features in (train, held_out):
        check_vocabulary(features, tokenizer, num_embeddings(model))
    check_space(recipe, model)
    checkpoint, identity = find_checkpoint(recipe, identity_of(recipe, splits, world_size))
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
    return Prepared(trainer, tokenizer, held_out, checkpoint, baseline)


def find_checkpoint(recipe: Recipe, identity: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint to resume from, if any, and what the next ones record.

    That is the identity, the run that they belong to and the changes when it resumed. Raise
    RecipeError for a checkpoint of another run; with `recipe.overwrite` those are deleted.
    """
    checkpoints = recipe.folder / "checkpoints"
    checkpoint = newest_verified(checkpoints)
    marker = read_marker(checkpoint) if checkpoint else None
    if checkpoint is None or marker is None:
        return None, identity | {"run": uuid.uuid4().hex, "changed": []}
    before = {name: marker[name] for name in identity}
    unknown = [path for path, *_ in differences(before, identity)]
    if recipe.overwrite and not set(unknown) <= set(recipe.allow_changed):
        PartialState().wait_for_everyone()  # every rank has seen them
        if PartialState().is_main_process:
            delete_checkpoints(recipe.folder)
        return None, identity | {"run": uuid.uuid4().hex, "changed": []}
    changed = check_resumed(recipe.folder, before, identity, recipe.allow_changed)
    say(f"  resuming from {checkpoint.name}")
    for each in changed:
        say(f"  {each['field']} changes from {each['before']!r} to {each['now']!r}")
    changed = [each | {"step": marker["step"]} for each in changed]
    record = {"run": marker["run"], "changed": [*marker["changed"], *changed]}
    return checkpoint, identity | record


def finished_result(recipe: Recipe) -> dict[str, Any] | None:
    """Return the task.json of the whole result in the folder, or None where there is none.

    Raise RecipeError for a result of another recipe, and for files that are not a whole result.
    With `recipe.overwrite` return None for these, and for any but that of this very command, where
    a kill or the Hub kept it from its end. Rank 0 decides for all.
    """
    found: list[dict[str, Any] | None] = [None]
    if PartialState().is_main_process:
        with promised(recipe.folder, 0, f"Mend that and {AGAIN}"):
            settle(recipe.folder)
            found = [result_in(recipe)]
    if PartialState().num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def result_in(recipe: Recipe) -> dict[str, Any] | None:
    """Do what `finished_result` does, on one rank."""
    folder = recipe.folder
    if not (folder / "task.json").is_file():
        foreign = ", ".join(file.name for file in files_of(folder))
        if foreign and not recipe.overwrite:
            text = (
                f"{folder} has {foreign}, but no task.json: no finished run left them there. Use "
            )
            text += "another --output-dir, or replace them with --overwrite."
            raise RecipeError([Problem("output_dir", text)])
        return None
    if wrong := damage(folder):
        if recipe.overwrite:
            return None
        text = "Bring back the files of the result, or replace it with --overwrite."
        problems = [Problem(str(folder), each) for each in wrong]
        raise RecipeError([*problems, Problem("output_dir", text)])
    sidecar = read_manifest(folder)
    delete_checkpoints(folder, run=sidecar.get("run"))  # which a kill left there
    before = comparable(Recipe.from_file(folder / "recipe.json"))
    if recipe.overwrite:
        started = folder / STARTED
        interrupted = started.is_file() and started.read_text() == sidecar.get("run")
        return sidecar if interrupted and before == comparable(recipe) else None
    check_same(folder, differences(before, comparable(recipe)))
    return sidecar


def rows_changed(sidecar: dict[str, Any], splits: Splits) -> list[tuple[str, Any, Any]]:
    """Return the fingerprints of rows that are not those of a finished result."""
    recorded = sidecar["dataset"]
    before = {name: recorded[f"{name}_rows_sha256"] for name in ("train", "eval")}
    return list(differences({"data": before}, {"data": data_of(splits)}))


def finish_again(
    recipe: Recipe, sidecar: dict[str, Any], splits: Splits, signals: StopSignals
) -> dict[str, Any]:
    """Say that a run is finished, publish its result if asked for, and return its metrics.

    Raise RecipeError where the rows have changed since.
    """
    check_same(recipe.folder, rows_changed(sidecar, splits))
    say(f"{recipe.folder} holds the finished result of this run. Train again with --overwrite.")
    print_score(recipe.name, sidecar["metrics"])
    with signals.ending(not_published(recipe.folder)):
        if recipe.push_to and PartialState().is_main_process:
            publish_finished(recipe.folder, recipe.push_to, public=recipe.public)
    (recipe.folder / STARTED).unlink(missing_ok=True)
    PartialState().wait_for_everyone()
    return sidecar["metrics"]


def not_published(folder: Path) -> str:
    """Return what a signal ends `publish` with."""
    return f"stopped. The result is complete in {folder}; the same command publishes it."


def delete_checkpoints(folder: Path, run: str | None = None) -> None:
    """Delete checkpoints in a run's folder; with `run`, those of that run and unfinished ones."""
    checkpoints = folder / "checkpoints"
    for checkpoint in all_checkpoints(checkpoints):
        marker = read_marker(checkpoint)
        unfinished = not (checkpoint / MARKER).is_file()
        if run is None or unfinished or (marker is not None and marker["run"] == run):
            delete(checkpoint)
    if not all_checkpoints(checkpoints):
        shutil.rmtree(checkpoints, ignore_errors=True)


def train_to_the_end(trainer: RecipeTrainer, checkpoint: Path | None, signals: StopSignals) -> None:
    """Train, from a checkpoint if there is one. Raise Preempted where a signal stops it."""
    stopping = StopAtSignal(signals)
    trainer.add_callback(stopping)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stopping.stopped:
        step = trainer.state.global_step
        raise Preempted(f"stopped at step {step:,} with a checkpoint; the same command goes on.")


def evaluate_at_the_end(trainer: RecipeTrainer, signals: StopSignals) -> dict[str, Any]:
    """Return the metrics. Raise Preempted, with a checkpoint of the last step, at a signal.

    On one process the signal itself ends the evaluation. Several leave it together, between two
    batches or after the last.
    """
    step = trainer.state.global_step
    stopping = next(
        each for each in trainer.callback_handler.callbacks if isinstance(each, StopAtSignal)
    )
    try:
        signals.immediate = PartialState().num_processes == 1
        stopping.check()
        metrics = score_of(trainer.evaluate())
        signals.immediate = False
        stopping.check()
    except Stopped:
        signals.immediate = False
        trainer.keep_last_step()
        text = f"stopped in the last evaluation, with a checkpoint of step {step:,}; {AGAIN}"
        raise Preempted(text) from None
    return metrics


def first_score(trainer: RecipeTrainer) -> dict[str, float]:
    """Return the primary metric of the evaluation before training, which checkpoints log too.

    It is none where the evaluation rows changed since.
    """
    if any(each["field"] == "data.eval" for each in trainer.identity["changed"]):
        return {}
    before = next(row for row in trainer.state.log_history if "eval_primary" in row)
    assert before["step"] == 0
    return {"before training": before[f"eval_{before['eval_primary']}"]}


def check_finite(metrics: dict[str, Any], trainer: RecipeTrainer) -> None:
    """Raise NonFiniteError for a score that is not finite."""
    primary, step = metrics["primary"], trainer.state.global_step
    for name in ("loss", primary):
        if name not in metrics or math.isfinite(metrics[name]):
            continue
        text = f"the evaluation's {name} is {metrics[name]}; nothing was saved. "
        if name == "loss":
            text += "Train again with a lower --train.learning-rate and another --output-dir."
        elif trainer.has_checkpoint():
            text += f"The checkpoint of step {step:,} is whole. Give other evaluation rows and run "
            text += "the same command with --allow-changed data.eval: only the evaluation is done "
            text += "again. Where a field of the dataset changes too, allow it as well."
        else:
            text += "Give other evaluation rows and run the same command again."
        raise NonFiniteError(text)


def texts(examples: Examples) -> Any:
    """Yield every text of the training rows, to train a tokenizer on."""
    for row in examples.rows:
        for value in row.values():
            yield from texts_of(value)
