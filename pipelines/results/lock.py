"""Locks of a run's folder: one run at a time, or several readers."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from accelerate import PartialState

from pipelines.errors import Problem, RecipeError
from pipelines.results.files import PUBLISH_STAGE

_held: set[Path] = set()  # folders that this process holds


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
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
        acquire(lock, fcntl.LOCK_EX, folder, "output_dir")
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
def lock_for_reading(folder: Path) -> Iterator[None]:
    """Keep runs out of a folder while its result is read; others may read it too.

    Nothing is to be kept out of a folder where no run has been or may write, nor by the run itself.
    """
    lock = folder / ".lock"
    if folder.resolve() in _held or not lock.is_file() or not os.access(lock, os.W_OK):
        yield
        return
    with lock.open("a+") as held:
        with suppress(RecipeError):
            acquire(held, fcntl.LOCK_EX, folder, str(folder))
            remove_leftovers(folder)
            held.truncate(0)  # the number of a process that was killed
        acquire(held, fcntl.LOCK_SH, folder, str(folder))
        yield


def acquire(lock: IO[str], kind: int, folder: Path, name: str) -> None:
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
