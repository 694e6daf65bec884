"""Run a call that may never return in a thread, so that the command can give up on it."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn, TypeVar

Answer = TypeVar("Answer")
POLL = 0.2  # seconds between two checks of a running call
_ABANDONED: list[threading.Thread] = []


def call_or_abandon(
    call: Callable[[], Answer], reason_to_abandon: Callable[[], BaseException | None]
) -> Answer:
    """Return what `call` returns, or abandon it and raise what `reason_to_abandon` returns.

    `reason_to_abandon` is called every `POLL` seconds while the call runs. An abandoned call
    continues in its thread until the process ends.
    """
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
        if error := reason_to_abandon():
            _ABANDONED.append(thread)
            raise error


def end_process(code: int) -> None:
    """Exit at once if an abandoned call still runs; its threads would delay a normal exit."""
    if any(thread.is_alive() for thread in _ABANDONED):
        end_process_now(code)


def end_process_now(code: int) -> NoReturn:
    """Exit, from any thread, whatever the others are doing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
