"""How often Python's garbage collector runs. Imports no torch.

The libraries leave half a million objects when they are imported. They stay as long as the process,
and Python would look through them 1,400 times meanwhile: a sixth of the time of a start.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

USUAL = gc.get_threshold()
RARE = (50_000, *USUAL[1:])
"""New objects before the youngest are looked through, 700 or 2,000 otherwise."""


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Let the collector run rarely inside, or until `collect_as_usual`."""
    before = gc.get_threshold()
    gc.set_threshold(*RARE)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def collect_as_usual() -> None:
    """Let the collector run as often as Python does by itself: cycles may hold large tensors."""
    gc.set_threshold(*USUAL)


@contextmanager
def collector_without_imports() -> Iterator[None]:
    """Let the collector skip the objects that there are, which the imports have left, inside.

    In a search, the objects of one run are not skipped in the next: only the outer block counts.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
