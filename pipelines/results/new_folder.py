"""A new folder that appears whole or not at all. Imports no torch."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pipelines.errors import CheckpointError, Preempted, Problem, RecipeError

STOPPED = "stopped by a signal. Nothing was written; run the same command again."


def check_new(out: Path) -> None:
    """Raise RecipeError for an OUT that is a file or below one, or a folder that is not empty."""
    there = next(each for each in (out, *out.absolute().parents) if each.exists())
    if not there.is_dir():
        raise RecipeError([Problem("OUT", f"{there} is a file. Give another folder.")])
    if there == out and any(out.iterdir()):
        raise RecipeError([Problem("OUT", f"{out} is not empty. Give another folder.")])


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder next to `out` to write to, and move it to `out` at the end.

    Nothing is left where an error, Ctrl-C or SIGTERM ends the block. Raise CheckpointError for
    files that cannot be written, and Preempted at SIGTERM.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished,
            raising_at_sigterm(),
        ):
            stage = Path(unfinished) / out.name
            stage.mkdir()
            yield stage
            stage.replace(out)
    except OSError as error:
        raise not_written(out, error) from error


def not_written(out: Path, error: OSError) -> CheckpointError:
    """Return the error of a folder that the disk does not take."""
    text = f"{out} could not be written: {error.strerror or error}. Nothing is left there."
    return CheckpointError(text)


@contextmanager
def removed_on_error(out: Path) -> Iterator[None]:
    """Delete `out`, which is written inside, where an error, Ctrl-C or SIGTERM ends the block.

    Raise CheckpointError for files that cannot be written, and Preempted at SIGTERM, also where a
    run inside says that it can be resumed.
    """
    try:
        with raising_at_sigterm():
            yield
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        error.__notes__ = []  # of a log that is deleted
        if isinstance(error, OSError):
            raise not_written(out, error) from error
        if isinstance(error, Preempted):
            raise Preempted(STOPPED) from None
        raise


@contextmanager
def raising_at_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Preempted inside, so that what is unfinished is deleted."""

    def end(number: int, frame: object) -> NoReturn:
        raise Preempted(STOPPED)

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
