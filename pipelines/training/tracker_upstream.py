"""A private name of Trackio; tests/training/test_tracker_upstream.py fails where it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def without_account() -> Iterator[None]:
    """Keep Trackio from asking the Hub whose token this machine has.

    It writes that name into every run, also of a store on this machine. No option turns it off.
    """
    run: Any = import_module("trackio.run")

    def no_name() -> str:
        raise OSError("a local run has no account")

    before = run._get_default_namespace
    run._get_default_namespace = no_name
    try:
        yield
    finally:
        run._get_default_namespace = before
