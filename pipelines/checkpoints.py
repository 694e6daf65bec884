"""Checkpoints that are known to be whole, the lock of a run's folder, and disks that are full.

A checkpoint is complete when COMPLETE.json is in it: written last, with the size and SHA-256 of
every file and what a run must have in common with this one to resume from it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from accelerate import PartialState
from safetensors import SafetensorError

from pipelines.errors import CheckpointError, Problem, RecipeError
from pipelines.recipe import Recipe
from pipelines.report import console
from pipelines.result import (
    PUBLISH_STAGE,
    damage_of_file,
    entries,
    is_list_of_files,
    write_whole,
)

MARKER = "COMPLETE.json"
KEPT = 2  # verified checkpoints that rotation leaves
RECORDED = {"recipe": dict, "data": dict, "world_size": int, "versions": dict, "run": str}


def mark_complete(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Write the marker, after everything else has reached the disk."""
    files = entries(checkpoint, without=(MARKER,))
    write_whole(checkpoint / MARKER, identity | {"step": step_of(checkpoint), "files": files})


def read_marker(checkpoint: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint's marker, or None where it is not what a run writes."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(marker, dict) or not is_list_of_files(marker.get("files")):
        return None
    if any(not isinstance(marker.get(name), kind) for name, kind in RECORDED.items()):
        return None
    changed = marker.get("changed")
    if not isinstance(changed, list) or marker.get("step") != step_of(checkpoint):
        return None
    return marker


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def all_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest step first."""
    found = [c for c in folder.glob("checkpoint-*") if c.name.split("-")[1].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def what_is_wrong(checkpoint: Path) -> str | None:
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
    """Return the newest whole checkpoint, and say which were passed over and why.

    Raise CheckpointError when there are complete ones but all are damaged. Nothing is deleted.
    """
    damaged = []
    for checkpoint in all_checkpoints(folder):
        reason = what_is_wrong(checkpoint)
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


def say(line: str) -> None:
    """Print a line from rank 0."""
    console().print(line, markup=False)


def rotate(folder: Path) -> None:
    """Delete the oldest complete checkpoints beyond `KEPT`; others are left alone."""
    complete = [c for c in all_checkpoints(folder) if (c / MARKER).is_file()]
    for checkpoint in complete[KEPT:]:
        delete(checkpoint)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint; one that a kill leaves half deleted does not look complete."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def check_space(recipe: Recipe, model: Any) -> None:
    """Say what the checkpoints of a run need. Raise RecipeError when they would not fit the disk.

    A checkpoint holds what is trained, or a whole model without an adapter, and two moments of
    AdamW for each trained weight; one more than is kept lies there for a moment.
    """
    if recipe.train.save_steps is None:
        return
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = 3 * 4 * trained * (KEPT + 1)
    free = shutil.disk_usage(recipe.folder).free
    if free < needed:
        text = f"{recipe.folder} has {free / 1e6:,.0f} MB free; checkpoints need about "
        text += f"{needed / 1e6:,.0f} MB. Make room, or write none with --train.save-steps None."
        raise RecipeError([Problem("output_dir", text)])
    say(f"  checkpoints: about {needed / 1e6:,.0f} MB, of {free / 1e6:,.0f} MB free")


@contextmanager
def promised(target: Path, num_bytes: int, message: str) -> Iterator[None]:
    """Turn an error of the disk inside into CheckpointError: what is needed, free and still whole.

    torch raises RuntimeError for a file that it cannot write, and safetensors an error of its own.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        text = f"{target} could not be written: {reason}. It needs about {megabytes(num_bytes)}; "
        text += f"{megabytes(free_space(target))} are free there. {message}"
        raise CheckpointError(text) from error


def free_space(path: Path) -> int:
    """Return the free bytes of the disk that a path is on, or would be."""
    while not path.is_dir():
        path = path.absolute().parent
    return shutil.disk_usage(path).free


def megabytes(num_bytes: int) -> str:
    """Return a number of bytes in MB, as text."""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.1f} MB"


_held: set[Path] = set()  # folders that this process holds


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this run. Raise RecipeError, naming the process, when another has it.

    Every rank makes the folder, since any may be the first to look at its disk; the first holds it.
    What a killed `publish` left behind is removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror}."
        raise RecipeError([Problem("output_dir", text)]) from None
    with lock:
        if not PartialState().is_main_process:
            yield
            return
        take(lock, fcntl.LOCK_EX, folder, "output_dir")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        remove_leftovers(folder)
        _held.add(folder.resolve())
        try:
            yield
        finally:
            _held.discard(folder.resolve())
            with suppress(OSError):  # a full disk is told by what needed it
                lock.truncate(0)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep runs out of a folder while its result is read; others may read it too.

    Nothing is to be kept out of a folder where no run has been or may write, nor by the run itself.
    """
    lock = folder / ".lock"
    if folder.resolve() in _held or not lock.is_file() or not os.access(lock, os.W_OK):
        yield
        return
    with lock.open("a+") as held:
        with suppress(RecipeError):
            take(held, fcntl.LOCK_EX, folder, str(folder))
            remove_leftovers(folder)
            held.truncate(0)  # the number of a process that was killed
        take(held, fcntl.LOCK_SH, folder, str(folder))
        yield


def take(lock: IO[str], kind: int, folder: Path, name: str) -> None:
    """Lock an open file. Raise RecipeError when another process has it."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        text = f"process {owner} is running in {folder}."
        if not owner:
            text = f"another command is reading the result in {folder}. Wait until it has ended."
        raise RecipeError([Problem(name, text)]) from None


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed `publish` of an earlier version left; nobody else holds the folder."""
    for stage in folder.glob(f"{PUBLISH_STAGE}*"):
        shutil.rmtree(stage, ignore_errors=True)
