"""Errors of the disk, and its free space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipelines.collectives_upstream import is_communication_error
from pipelines.errors import CheckpointError


@contextmanager
def explain_disk_errors(target: Path, *, num_bytes: int, advice: str) -> Iterator[None]:
    """Turn an error of the disk into a CheckpointError that says what is needed and what is free.

    `num_bytes` is about what is written to `target`; `advice` ends the message: what is still whole
    and what to do. torch raises RuntimeError for a file that it cannot write, and safetensors an
    error of its own. An error of another rank passes through: checkpoints are written together.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_communication_error(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{target} could not be written: {reason}. It needs about {megabytes(num_bytes)}; "
            f"{megabytes(free_space(target))} are free there. {advice}"
        ) from error


def free_space(path: Path) -> int:
    """Return the free bytes of the disk that a path is on, or would be."""
    while not path.is_dir():
        path = path.absolute().parent
    return shutil.disk_usage(path).free


def megabytes(num_bytes: int) -> str:
    """Return a number of bytes in MB, as text."""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.1f} MB"
