"""Locks of a run's folder: one run at a time, or several readers."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from accelerate import PartialState

from pipelines.errors import Problem, RecipeError
from pipelines.results.files import PUBLISH_STAGE

# fcntl, not filelock: of its locks with readers only ReadWriteLock is released by a kill, and that
# is an SQLite database, which does not name its holder and does not work on network file systems.
_locked: set[Path] = set()  # folders that this process has locked for a run
_files: set[IO[str]] = set()  # files that this process alone holds open


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this run. Raise RecipeError, naming the process, if another has it locked.

    Every rank makes the folder, since any may be the first to look at its disk; rank 0 locks it.
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
        _acquire(lock, fcntl.LOCK_EX, folder, field="output_dir")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _remove_leftovers(folder)
        _locked.add(folder.resolve())
        try:
            with closed_in_children(lock):
                yield
        finally:
            _locked.discard(folder.resolve())
            with suppress(OSError):  # a full disk is reported by what needed it
                lock.truncate(0)


@contextmanager
def closed_in_children(file: IO[str]) -> Iterator[None]:
    """Close a locked file in every process that is forked inside.

    A lock is held until the last process that has inherited it closes it: workers of a data loader
    would hold that of a run which was killed, for the seconds until they notice.
    """
    _close_at_fork()
    _files.add(file)
    try:
        yield
    finally:
        _files.discard(file)


@cache
def _close_at_fork() -> None:
    """Let forked processes close the files; once, since it cannot be undone."""

    def close_all() -> None:
        for file in _files:
            file.close()

    os.register_at_fork(after_in_child=close_all)


@contextmanager
def lock_for_reading(folder: Path) -> Iterator[None]:
    """Keep runs out of a folder while its result is read; others may read it too.

    A folder where no run has been or may write needs no lock, nor does the run itself.
    """
    file = folder / ".lock"
    if folder.resolve() in _locked or not file.is_file() or not os.access(file, os.W_OK):
        yield
        return
    with file.open("a+") as lock:
        with suppress(RecipeError):
            _acquire(lock, fcntl.LOCK_EX, folder, field=str(folder))
            _remove_leftovers(folder)
            lock.truncate(0)  # the id of a process that was killed
        _acquire(lock, fcntl.LOCK_SH, folder, field=str(folder))
        yield


def _acquire(lock: IO[str], kind: int, folder: Path, *, field: str) -> None:
    """Lock an open file. Raise RecipeError when another process has it locked."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        text = f"process {owner} is running in {folder}."
        if not owner:
            text = f"another command is reading the result in {folder}. Wait until it has ended."
        raise RecipeError([Problem(field, text)]) from None


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed `publish` of an earlier version left; the folder is locked."""
    for stage in folder.glob(f"{PUBLISH_STAGE}*"):
        shutil.rmtree(stage, ignore_errors=True)
