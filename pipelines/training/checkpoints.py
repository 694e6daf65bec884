"""Checkpoints that are known to be whole, and whether the disk has room for them.

A checkpoint is complete when COMPLETE.json is in it: written last, with the size and SHA-256 of
every file and what a run must have in common with this one to resume from it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.console import say
from pipelines.errors import CheckpointError, Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.results.files import damage_of_file, entries, is_list_of_files, write_whole
from pipelines.training.engines import ORDINARY

MARKER = "COMPLETE.json"
KEPT = 2  # verified checkpoints that rotation leaves
RECORDED = {"recipe": dict, "data": dict, "world_size": int, "versions": dict, "run": str}


def mark_complete(
    checkpoint: Path, identity: dict[str, Any], *, best_step: int | None = None
) -> None:
    """Write the marker, after everything else has reached the disk.

    `best_step` is the step of the best evaluation until then, whose checkpoint is kept.
    """
    files = entries(checkpoint, without=(MARKER,), subfolders=True)
    record = {"step": step_of(checkpoint), "best_step": best_step, "files": files}
    write_whole(checkpoint / MARKER, identity | record)


def read_marker(checkpoint: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint's marker, or None where it is not what a run writes."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(marker, dict) or not is_list_of_files(marker.get("files"), subfolders=True):
        return None
    if any(not isinstance(marker.get(name), kind) for name, kind in RECORDED.items()):
        return None
    changed = marker.get("changed")
    if not isinstance(changed, list) or marker.get("step") != step_of(checkpoint):
        return None
    return {"checkpoint_format": ORDINARY} | marker  # older ones do not name it


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def all_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest step first."""
    checkpoints = [c for c in folder.glob("checkpoint-*") if c.name.split("-")[1].isdigit()]
    return sorted(checkpoints, key=step_of, reverse=True)


def find_damage(checkpoint: Path) -> str | None:
    """Return why a checkpoint is not what its run wrote, or None."""
    if not (checkpoint / MARKER).is_file():
        return "its writing was interrupted"
    marker = read_marker(checkpoint)
    if marker is None:
        return f"{MARKER} is damaged"
    for name, recorded in marker["files"].items():
        if text := damage_of_file(checkpoint / name, recorded):
            return text
    return None


def newest_verified(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, and print which are passed over and why.

    Raise CheckpointError when there are complete ones but all are damaged. Nothing is deleted.
    """
    damaged = []
    for checkpoint in all_checkpoints(folder):
        reason = find_damage(checkpoint)
        if reason is None:
            return checkpoint
        if (checkpoint / MARKER).is_file():
            damaged.append(f"{checkpoint.name}: {reason}")
        say(f"  {checkpoint.name} passed over: {reason}")
    if damaged:
        listed = "\n".join(f"    {line}" for line in damaged)
        raise CheckpointError(
            f"{folder}: no checkpoint is whole.\n{listed}\n"
            "Bring one back, or delete the folder to start again."
        )
    return None


def rotate(folder: Path) -> None:
    """Delete complete checkpoints but the newest `KEPT`, and those of their best evaluations.

    A run that resumes from any that is left finds the best one until then. Others are left alone.
    """
    complete = [c for c in all_checkpoints(folder) if (c / MARKER).is_file()]
    markers = filter(None, map(read_marker, complete[:KEPT]))
    best = {marker.get("best_step") for marker in markers}
    for checkpoint in complete[KEPT:]:
        if step_of(checkpoint) not in best:
            delete(checkpoint)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint; one that a kill leaves half deleted does not look complete."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def num_trained(model: Any) -> int:
    """Return the number of a model's trainable parameters."""
    return sum(num_elements(p) for p in model.parameters() if p.requires_grad)


def num_elements(parameter: Any) -> int:
    """Return the elements of the whole parameter: ZeRO-3 leaves none in place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def space_of_checkpoints(recipe: Recipe, num_parameters: int) -> int:
    """Return the bytes of the checkpoints that a run has at once, at most.

    A checkpoint has the trained parameters and two moments of AdamW for each. For a moment there
    is one checkpoint more than rotation leaves: the newest, and the best of each of these.
    """
    if recipe.train.save_steps is None:
        return 0
    count = KEPT + 1 + (KEPT if recipe.train.keep == "best" else 0)
    return 3 * 4 * num_parameters * count


def free_space(folder: Path) -> int:
    """Return the bytes that are free for a folder, which may not exist yet."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    return shutil.disk_usage(existing).free


def check_space(recipe: Recipe, num_parameters: int) -> None:
    """Print the disk space that a run's checkpoints need. Raise RecipeError if there is less."""
    needed, free = space_of_checkpoints(recipe, num_parameters), free_space(recipe.folder)
    if needed == 0:
        return
    if free < needed:
        text = f"{recipe.folder} has {free / 1e6:,.0f} MB free; checkpoints need about "
        text += f"{needed / 1e6:,.0f} MB. Make room, or write none with --train.save-steps None."
        raise RecipeError([Problem("output_dir", text)])
    say(f"  checkpoints: about {needed / 1e6:,.0f} MB, of {free / 1e6:,.0f} MB free")
