"""Signals that stop a run: what they do before, in and after its training. Imports no torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from pipelines.errors import Preempted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
AGAIN = "run the same command again to resume."


class Stopped(BaseException):
    """A stop signal ends what is being done; not an Exception, so that no library catches it."""


class StopSignals:
    """Note SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C; the second ends the process, with 130.

    A signal only sets `asked`, which the training looks at after each step. While `immediate` is
    set, where nothing would be lost, it also raises Stopped. A SIGHUP that is ignored, as under
    nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.asked = False
        self.immediate = False
        self._before: dict[int, Any] = {}
        self._terminals = [fd for fd in (1, 2) if is_terminal(fd)]

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in STOP_SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self.immediate = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Stopped):
            raise Preempted(f"stopped; {AGAIN}") from None

    def receive(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        if self.asked and number == signal.SIGINT:
            os._exit(130)
        if number == signal.SIGHUP:
            self._leave_terminal()
        first, self.asked = not self.asked, True
        if first and self.immediate:
            raise Stopped

    def check(self) -> None:
        """Raise Stopped if a signal has arrived."""
        if self.asked:
            raise Stopped

    @contextmanager
    def ending(self, message: str) -> Iterator[None]:
        """Let a signal end the block at once, with Preempted and a message."""
        try:
            self.immediate = True
            self.check()
            yield
            self.immediate = False
            self.check()
        except Stopped:
            raise Preempted(message) from None
        finally:
            self.immediate = False

    def _leave_terminal(self) -> None:
        """Write to nowhere instead of to a terminal that was closed: each write would fail."""
        for fd in self._terminals:
            if not is_terminal(fd):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, fd)
                os.close(nowhere)


def is_terminal(fd: int) -> bool:
    """Tell whether a file descriptor is an open terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False
