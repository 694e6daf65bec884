"""Locks that the kernel releases when their process ends, however it ends.

They work between the machines of a shared disk if its file system supports `flock`, as NFS does.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from pipelines.errors import Problem, RecipeError
from pipelines.results.lock import closed_in_children


class Lock:
    """An exclusive lock of a file, which names the process that has it."""

    def __init__(self, file: Path):
        self.file = file
        self._held: ExitStack | None = None

    def __enter__(self) -> Lock:
        """Wait for the lock."""
        self._acquire(fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self.release()

    def try_acquire(self) -> bool:
        """Lock the file, unless another process has it; tell whether it is locked."""
        try:
            self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let others lock the file."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def owner(self) -> str:
        """Return host and process id of the last process that locked the file."""
        return self.file.read_text(encoding="utf-8").strip()

    def _acquire(self, kind: int) -> None:
        """Open and lock the file. Raise RecipeError where its disk has no locks."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            opened = self.file.open("a+", encoding="utf-8")
            try:
                fcntl.flock(opened, kind)
            except BaseException:
                opened.close()
                raise
        except BlockingIOError:
            raise
        except OSError as error:
            text = f"{self.file} cannot be locked: {error.strerror}. Use a disk with file locks."
            raise RecipeError([Problem("output_dir", text)]) from None
        opened.truncate(0)
        opened.write(f"{socket.gethostname()}, process {os.getpid()}\n")
        opened.flush()
        self._held = ExitStack()
        self._held.enter_context(opened)
        self._held.enter_context(closed_in_children(opened))
