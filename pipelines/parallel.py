"""Map a function over items in worker processes, with the results in the order of the items."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from pipelines.errors import WorkerError
from pipelines.workers import CONTEXTS

MOST_WORKERS = 16
"""More would wait for the process that joins their results."""
AHEAD = 2  # items a worker whose results may wait
PARALLELISM = "TOKENIZERS_PARALLELISM"
PR_SET_PDEATHSIG = 1  # of sys/prctl.h

T = TypeVar("T")
Made = TypeVar("Made")

_make: Callable[[Any], Any]


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def num_workers() -> int:
    """Return how many processes work for `map_in_order`; 1 is this process.

    Workers are forked, and share the memory of this process: only Linux does so safely.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return min(num_cores(), MOST_WORKERS)


def map_in_order(make: Callable[[T], Made], items: Iterable[T]) -> Iterator[Made]:
    """Yield what `make` returns for each item, made by several processes for several items.

    Items and results are pickled, `make` is not. An error of `make` is raised where the result
    would be. Raise WorkerError if a worker is killed.
    """
    rest = iter(items)
    first = [*islice(rest, 2)]
    workers = num_workers()
    if len(first) < 2 or workers < 2:
        yield from map(make, chain(first, rest))
        return
    pool = ProcessPoolExecutor(workers, CONTEXTS["fork"], _start_worker, (make, os.getpid()))
    running: deque[Future[Made]] = deque()
    try:
        with _forking():
            running.append(pool.submit(_work, first[0]))  # forks all workers
        for item in chain(first[1:], rest):
            running.append(pool.submit(_work, item))
            if len(running) > AHEAD * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise WorkerError(
            "A process that prepares rows was killed, as the system does where memory runs out. "
            "Run the same command again; `taskset -c 0` before it prepares with one process."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _forking() -> Iterator[None]:
    """Let workers begin without threads of tokenizers, which a forked process does not have."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
            yield
    finally:
        del os.environ[PARALLELISM]
        if before is not None:
            os.environ[PARALLELISM] = before


def _start_worker(make: Callable[[Any], Any], parent: int) -> None:
    """Keep the function of this worker, which ends with its parent, and by SIGTERM.

    The pool terminates the others so where one was killed, which may hold what they wait for.
    """
    global _make
    _make = make
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    gc.freeze()  # a collection would copy the pages of all objects of the parent
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _work(item: Any) -> Any:
    """Return what the function of this worker makes of an item."""
    return _make(item)
