"""Worker processes, of data loaders and of the preparation of rows, which no signal stops.

Imports no torch: with the start method "spawn" each worker imports this.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import context
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import ClassVar

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class _Worker(BaseProcess):
    """A process that the signals which stop a run do not reach.

    A terminal and a scheduler send them to every process; a worker that died of one would end the
    run before its checkpoint. Its parent therefore kills workers that an error leaves behind: they
    would never react to SIGTERM.
    """

    def start(self) -> None:
        """Start it with the signals blocked, which a forked and a spawned process inherit."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        Finalize(None, _kill, [self], exitpriority=0)

    def run(self) -> None:
        """Work with the signals blocked, also as a child of a fork server."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        super().run()


def _kill(worker: BaseProcess) -> None:
    """Kill a worker as its parent ends, where torch would raise for each of them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    worker.kill()


class _ForkWorker(_Worker, context.ForkProcess):
    """A worker that is a copy of its parent."""


class _SpawnWorker(_Worker, context.SpawnProcess):
    """A worker in a new interpreter."""


class _ForkServerWorker(_Worker, context.ForkServerProcess):
    """A worker that is a copy of a server."""


class _ForkContext(context.ForkContext):
    """The start method "fork"."""

    Process: ClassVar[type[_ForkWorker]] = _ForkWorker


class _SpawnContext(context.SpawnContext):
    """The start method "spawn"."""

    Process: ClassVar[type[_SpawnWorker]] = _SpawnWorker


class _ForkServerContext(context.ForkServerContext):
    """The start method "forkserver"."""

    Process: ClassVar[type[_ForkServerWorker]] = _ForkServerWorker


CONTEXTS: dict[str, context.BaseContext] = {
    "fork": _ForkContext(),
    "spawn": _SpawnContext(),
    "forkserver": _ForkServerContext(),
}


def worker_context() -> context.BaseContext:
    """Return what starts workers, by the start method of Python on this platform."""
    return CONTEXTS[multiprocessing.get_start_method()]
