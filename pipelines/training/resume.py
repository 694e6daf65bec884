"""The checkpoint that a run resumes from."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pipelines.console import say
from pipelines.errors import Problem, RankError, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.training.checkpoints import (
    MARKER,
    all_checkpoints,
    delete,
    newest_verified,
    read_marker,
)
from pipelines.training.engines import ORDINARY, checkpoint_format, requested_engine
from pipelines.training.identity import check_resumed, differences
from pipelines.training.ranks import Ranks


def is_shared(folder: Path, ranks: Ranks) -> bool:
    """Tell whether every rank sees the same folder.

    Raise RankError where some machines share it and others do not, and RecipeError where none do
    and the engine's checkpoints have a part of each rank.
    """

    def make() -> str:
        name = f".seen-by-all-{uuid.uuid4().hex}"  # new, so that no network disk has it cached
        (folder / name).touch()
        return name

    probe = folder / ranks.from_first(make)
    seen = [note["seen"] for note in ranks.exchange({"seen": probe.is_file()})]
    if PartialState().is_main_process:
        probe.unlink()
    if not all(seen) and any(seen[rank] for rank in ranks.on_other_machines()):
        missing = ", ".join(ranks.name(rank) for rank, sees in enumerate(seen) if not sees)
        text = f"output_dir: {missing} does not see {folder} of {ranks.name(0)}, other machines do."
        raise RankError([f"{text} Put it on a disk that all of them share, or on one of each."], 2)
    if not all(seen) and checkpoint_format() != ORDINARY:
        name = requested_engine().name
        text = f"{folder} is not on a disk that all machines share. Checkpoints of {name} "
        raise RecipeError([Problem("output_dir", f"{text}have a part of each: use such a disk.")])
    return all(seen)


def find_checkpoint(
    recipe: Recipe, identity: dict[str, Any], ranks: Ranks, *, shared: bool
) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint to resume from, if any, and what the next ones record.

    That is the identity, the run that they belong to and the changes when it resumed. Raise
    RecipeError for a checkpoint of another run; with `recipe.overwrite` those are deleted. Raise
    RankError where the ranks see other checkpoints. Where machines do not share the folder, each
    has checkpoints of its own.
    """
    checkpoints = recipe.folder / "checkpoints"
    checkpoint = newest_verified(checkpoints)
    marker = read_marker(checkpoint) if checkpoint else None
    found = f"{checkpoint.name} of run {marker['run'][:8]}" if checkpoint and marker else None
    ranks.compare({"checkpoint": found}, lambda _: other_checkpoint(checkpoints))
    if checkpoint is None or marker is None:
        return None, identity | {"run": ranks.from_first(new_run), "changed": []}
    before = {name: marker.get(name, value) for name, value in identity.items()}  # older ones lack
    unknown = [path for path, *_ in differences(before, identity)]
    if recipe.overwrite and not set(unknown) <= set(recipe.allow_changed):
        ranks.wait()  # every rank has seen them
        process = PartialState()
        if process.is_main_process or (process.is_local_main_process and not shared):
            delete_checkpoints(recipe.folder)
        return None, identity | {"run": ranks.from_first(new_run), "changed": []}
    changed = check_resumed(recipe.folder, before, identity, recipe.allow_changed)
    say(f"  resuming from {checkpoint.name}")
    for each in changed:
        say(f"  {each['field']} changes from {each['before']!r} to {each['now']!r}")
    changed = [each | {"step": marker["step"]} for each in changed]
    record = {"run": marker["run"], "changed": [*marker["changed"], *changed]}
    return checkpoint, identity | record


def other_checkpoint(checkpoints: Path) -> str:
    """Return what to do where ranks see other checkpoints in their folder."""
    return (
        "Every machine resumes from the same checkpoint: put --output-dir on a disk that all of "
        f"them share, or copy a checkpoint that is missing in {checkpoints} there from another "
        "machine, or delete one that the others have not."
    )


def new_run() -> str:
    """Return an id of a run."""
    return uuid.uuid4().hex


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
