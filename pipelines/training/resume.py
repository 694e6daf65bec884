"""The checkpoint that a run resumes from."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pipelines.console import say
from pipelines.recipe.recipe import Recipe
from pipelines.training.checkpoints import (
    MARKER,
    all_checkpoints,
    delete,
    newest_verified,
    read_marker,
)
from pipelines.training.identity import check_resumed, differences
from pipelines.training.ranks import Ranks


def find_checkpoint(
    recipe: Recipe, identity: dict[str, Any], ranks: Ranks
) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint to resume from, if any, and what the next ones record.

    That is the identity, the run that they belong to and the changes when it resumed. Raise
    RecipeError for a checkpoint of another run; with `recipe.overwrite` those are deleted. Raise
    RankError where the ranks see other checkpoints.
    """
    checkpoints = recipe.folder / "checkpoints"
    checkpoint = newest_verified(checkpoints)
    marker = read_marker(checkpoint) if checkpoint else None
    found = f"{checkpoint.name} of run {marker['run'][:8]}" if checkpoint and marker else None
    ranks.compare({"checkpoint": found}, lambda _: other_checkpoint(checkpoints))
    if checkpoint is None or marker is None:
        return None, identity | {"run": uuid.uuid4().hex, "changed": []}
    before = {name: marker[name] for name in identity}
    unknown = [path for path, *_ in differences(before, identity)]
    if recipe.overwrite and not set(unknown) <= set(recipe.allow_changed):
        ranks.wait()  # every rank has seen them
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


def other_checkpoint(checkpoints: Path) -> str:
    """Return what to do where ranks see other checkpoints in their folder."""
    return (
        "Every machine reads the checkpoint: put --output-dir on a disk that all of them share, or "
        f"copy {checkpoints} from the machine of rank 0 to the others, next to what is there."
    )


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
