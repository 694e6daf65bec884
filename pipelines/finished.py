"""What a run does with a finished result that is in its folder already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pipelines.console import say
from pipelines.data.splits import Splits
from pipelines.errors import Problem, RecipeError
from pipelines.html_report.write import write_report
from pipelines.hub.publish import publish_finished
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.last_screen import print_last_screen
from pipelines.reporting.report import print_score
from pipelines.reporting.run_files import REPORT, STARTED
from pipelines.results.base_weights import sha256_of_folders
from pipelines.results.disk import explain_disk_errors
from pipelines.results.files import (
    files_of,
    find_result_damage,
    read_manifest,
    recover_interrupted_swap,
)
from pipelines.training.identity import check_same, comparable, data_of, differences
from pipelines.training.ranks import Ranks
from pipelines.training.resume import delete_checkpoints
from pipelines.training.signals import AGAIN, StopSignals

OTHER_RESULT = (
    "Rank 0 saves the result of a run. Start the machine that has it as the first, or give another "
    "--output-dir."
)


def mark_started(recipe: Recipe, run: str) -> None:
    """Note in the folder that a run has begun, and its recipe unless a result is there; on rank 0.

    A run that is interrupted has left its recipe, then.
    """
    if not PartialState().is_main_process:
        return
    (recipe.folder / STARTED).write_text(run)
    if not (recipe.folder / "task.json").exists():
        text = replace(recipe, overwrite=False).to_json()
        (recipe.folder / "recipe.json").write_text(text, encoding="utf-8")


def unmark_started(recipe: Recipe) -> None:
    """Note that the run is finished."""
    (recipe.folder / STARTED).unlink(missing_ok=True)


def finished_result(recipe: Recipe, ranks: Ranks) -> dict[str, Any] | None:
    """Return the task.json of the whole result in the folder, or None if it has no result.

    Raise RecipeError for a result of another recipe, and for files that are not a whole result.
    With `recipe.overwrite` return None for these, and for any result but that of this very command
    if a kill or the Hub interrupted it after saving. Rank 0 decides for all; raise RankError where
    another rank sees a result that rank 0 does not see.
    """

    def decide() -> dict[str, Any] | None:
        with explain_disk_errors(recipe.folder, num_bytes=0, advice=f"Mend that and {AGAIN}"):
            recover_interrupted_swap(recipe.folder)
            return result_in(recipe)

    decided: dict[str, Any] | None = ranks.from_first(decide)
    if not recipe.overwrite:
        run = None if decided is None else decided.get("run")
        there = (recipe.folder / "task.json").is_file()
        found = read_manifest(recipe.folder).get("run") if there else run
        ranks.compare({"result": found}, lambda _: OTHER_RESULT)
    return decided


def result_in(recipe: Recipe, *, clean: bool = True) -> dict[str, Any] | None:
    """Do what `finished_result` does, on one rank.

    Unless told not to `clean`, delete the checkpoints that a kill left next to the result.
    """
    folder = recipe.folder
    if not (folder / "task.json").is_file():
        others = (file.name for file in files_of(folder) if file.name != "recipe.json")
        foreign = ", ".join(others)  # a run that has begun has left its recipe
        if foreign and not recipe.overwrite:
            text = f"{folder} has {foreign}, but no task.json: no finished run left them there. "
            text += "Use another --output-dir, or replace them with --overwrite."
            raise RecipeError([Problem("output_dir", text)])
        return None
    if wrong := find_result_damage(folder):
        if recipe.overwrite:
            return None
        text = "Bring back the files of the result, or replace it with --overwrite."
        problems = [Problem(str(folder), each) for each in wrong]
        raise RecipeError([*problems, Problem("output_dir", text)])
    sidecar = read_manifest(folder)
    if clean:
        delete_checkpoints(folder, run=sidecar.get("run"))
    before = comparable(Recipe.from_file(folder / "recipe.json"))
    if recipe.overwrite:
        started = folder / STARTED
        interrupted = started.is_file() and started.read_text() == sidecar.get("run")
        return sidecar if interrupted and before == comparable(recipe) else None
    check_same(folder, differences(before, comparable(recipe)))
    return sidecar


def inputs_changed(
    recipe: Recipe, sidecar: dict[str, Any], splits: Splits
) -> list[tuple[str, Any, Any]]:
    """Return the hashes of rows and of folders that are not those of a finished result."""
    recorded, now = sidecar["dataset"], sha256_of_folders(recipe)
    before = {
        "data": {name: recorded.get(f"{name}_rows_sha256") for name in ("train", "eval", "test")},
        "sha256_of": sidecar.get("sha256_of", now),  # results of earlier versions have none
    }
    return list(differences(before, {"data": data_of(splits), "sha256_of": now}))


def finish_again(
    recipe: Recipe,
    sidecar: dict[str, Any],
    splits: Splits,
    signals: StopSignals,
    ranks: Ranks,
) -> dict[str, Any]:
    """Print that a run is finished, publish its result if requested, and return its metrics.

    Raise RecipeError if the rows, or the folders that the recipe names, have changed since.
    """
    check_same(recipe.folder, inputs_changed(recipe, sidecar, splits))
    say(f"{recipe.folder} holds the finished result of this run. Train again with --overwrite.")
    print_score(recipe.name, sidecar["metrics"])
    if not (recipe.folder / REPORT).is_file():  # a kill came before it
        try_to_report(recipe.folder)
    with signals.ending(not_published(recipe.folder)):
        if recipe.push_to and PartialState().is_main_process:
            publish_finished(recipe.folder, recipe.push_to, public=recipe.public)
    unmark_started(recipe)
    ranks.wait()
    print_last_screen(recipe, sidecar["metrics"])
    metrics: dict[str, Any] = sidecar["metrics"]
    return metrics


def try_to_report(folder: Path) -> None:
    """Write the report of a run whose result is saved, or say why the disk does not take it."""
    if not PartialState().is_main_process:
        return
    try:
        write_report(folder)
    except OSError as error:
        say(f"  {folder / REPORT} could not be written: {error.strerror}")


def not_published(folder: Path) -> str:
    """Return what a signal ends `publish` with."""
    return f"stopped. The result is complete in {folder}; the same command publishes it."
