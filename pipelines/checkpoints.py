"""Checkpoints that are known to be whole, and the signals that ask for one.

A checkpoint is complete when COMPLETE.json stands in it: written last, with the size and SHA-256
of every file and what the run must have in common with one that resumes from it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.data import Splits, Stream
from pipelines.errors import CheckpointError, Problem, RecipeError
from pipelines.fields import plain
from pipelines.recipe import Recipe
from pipelines.report import console

MARKER = "COMPLETE.json"
KEPT = 2  # verified checkpoints that rotation leaves
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def identity_of(recipe: Recipe, splits: Splits, world_size: int) -> dict[str, Any]:
    """Return what two runs must have in common for one to go on where the other stopped."""
    bare = replace(recipe, output_dir=None, push_to=None, public=False, allow_changed=())
    train = splits.train
    read = train.rows if isinstance(train.rows, Stream) else train
    return {
        "recipe": plain(bare),
        "data": {
            "train": read.fingerprint(),
            "eval": splits.held_out.fingerprint(),
        },
        "world_size": world_size,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield path and both values of every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            where = f"{path}.{key}".lstrip(".")
            yield from differences(before.get(key), now.get(key), where)
    elif before != (list(now) if isinstance(now, tuple) else now):
        yield path.removeprefix("recipe."), before, now


def mark_complete(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Write the marker: after it stands there, everything else does."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(checkpoint.iterdir())
        if file.name != MARKER
    }
    for name in files:
        with (checkpoint / name).open("rb") as written:
            os.fsync(written.fileno())
    text = json.dumps(identity | {"step": step_of(checkpoint), "files": files}, indent=2)
    unfinished = checkpoint / f"{MARKER}.tmp"
    with unfinished.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(unfinished, checkpoint / MARKER)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
    try:
        files = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return f"{MARKER} is damaged"
    for name, recorded in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != recorded["size"]:
            return f"{name} has {file.stat().st_size} bytes, not {recorded['size']}"
        if sha256(file) != recorded["sha256"]:
            return f"{name} has changed since it was written"
    return None


def newest_verified(
    folder: Path, identity: dict[str, Any], allow_changed: tuple[str, ...]
) -> Path | None:
    """Return the newest whole checkpoint, and say which were passed over and why.

    Raise CheckpointError when there are complete ones but all are damaged, and RecipeError with
    the differences when the run that wrote it was another. Nothing is deleted.
    """
    damaged = []
    for checkpoint in all_checkpoints(folder):
        reason = what_is_wrong(checkpoint)
        if reason is None:
            check_identity(checkpoint, identity, allow_changed)
            say(f"  resuming from {checkpoint.name}")
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


def check_identity(
    checkpoint: Path, identity: dict[str, Any], allow_changed: tuple[str, ...]
) -> None:
    """Raise RecipeError with every difference that is not allowed."""
    marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    before = {name: marker.get(name) for name in identity}
    problems = [
        Problem(
            path,
            f"the run in {checkpoint.parent.parent} had {was!r}, this one has {now!r}. Use another "
            f"--output-dir, or --allow-changed {path}.",
        )
        for path, was, now in differences(before, identity)
        if path not in allow_changed
    ]
    if problems:
        raise RecipeError(problems)


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


class StopSignals(TrainerCallback):
    """Finish the step, write a checkpoint and stop, on every rank, when a signal asks for it.

    SIGTERM, SIGUSR1 and the first Ctrl-C do; the second Ctrl-C ends the process at once, with 130.
    """

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False

    def receive(self, number: int, frame: Any) -> None:
        """Note a signal."""
        if self.asked and number == signal.SIGINT:
            os._exit(130)
        self.asked = True

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals inside."""
        before = {number: signal.signal(number, self.receive) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        asked = self.asked
        process = PartialState()
        if process.num_processes > 1:
            every = torch.tensor(int(asked), device=process.device)
            torch.distributed.all_reduce(every, op=torch.distributed.ReduceOp.MAX)
            asked = bool(every.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this run. Raise RecipeError, naming the process, when another has it.

    Every rank makes the folder, since any may be the first to look at its disk; the first holds it.
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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            text = f"process {lock.read().strip()} is running in {folder}."
            raise RecipeError([Problem("output_dir", text)]) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
