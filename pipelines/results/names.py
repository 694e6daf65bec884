"""Names of data and models as this machine and others read them."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.data.local_files import is_path


def explicit(path: str) -> str:
    """Return a path that exists here so that it starts with "." or "/"; a Hub id as it is."""
    path = os.path.expanduser(path)
    if is_path(path) or not Path(path).exists():
        return path
    return f"./{path}"


def public_name(name: str) -> str:
    """Return a Hub id as it is, and a local path as others may read it, starting with "./".

    What is below the current folder keeps its place in it; of other paths the last part is left.
    """
    if not is_path(name):
        return name
    place = Path(os.path.abspath(name))  # links stay as they were typed
    if place != Path.cwd() and place.is_relative_to(Path.cwd()):
        return f"./{place.relative_to(Path.cwd()).as_posix()}"
    return f"./{place.name}"
