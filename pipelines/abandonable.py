"""Calls that may never return, run so that the command can give up on them."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")
POLL = 0.2  # seconds between two looks at a running call
_ABANDONED: list[threading.Thread] = []


def call_or_abandon(
    call: Callable[[], Answer], hopeless: Callable[[], BaseException | None]
) -> Answer:
    """Return what `call` returns; raise what `hopeless` returns and let the call run on."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), daemon=True)
    thread.start()
    while True:
        thread.join(POLL)
        if not thread.is_alive():
            return future.result()
        if error := hopeless():
            _ABANDONED.append(thread)
            raise error


def end_process(code: int) -> None:
    """Exit now if an abandoned call still runs; threads that it started would delay the exit."""
    if any(thread.is_alive() for thread in _ABANDONED):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
