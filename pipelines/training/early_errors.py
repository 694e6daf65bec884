"""Errors before the ranks of a run have joined each other. Imports torch only to tell of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import RunError


@contextmanager
def telling_other_machines() -> Iterator[None]:
    """Tell the ranks on other machines of an error inside: they would wait for this one.

    Those of this machine are ended by its launcher.
    """
    try:
        yield
    except RunError as error:
        one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"  # as torch's launcher sets it
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not one_machine:
            from pipelines.training.ranks import tell_other_machines

            tell_other_machines(error)
        raise
