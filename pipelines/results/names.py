"""Names of data and models, for this machine and for others."""

from __future__ import annotations

import os
from glob import has_magic
from pathlib import Path

from pipelines.data.local_files import is_path


def explicit(path: str) -> str:
    """Return a path that exists here so that it starts with "." or "/"; a Hub id as it is.

    A pattern of files is a path.
    """
    path = os.path.expanduser(path)  # noqa: PTH111 - Path drops the "./" that it began with
    if is_path(path) or not (Path(path).exists() or has_magic(path)):
        return path
    return f"./{path}"


def public_name(name: str) -> str:
    """Return a Hub id as it is, and a local path as others may read it, starting with "./".

    A path below the current folder is given from there; of other paths only the last part is left.
    """
    if not is_path(name):
        return name
    path = Path(os.path.abspath(name))  # noqa: PTH100 - resolve() would follow links
    if path != Path.cwd() and path.is_relative_to(Path.cwd()):
        return f"./{path.relative_to(Path.cwd()).as_posix()}"
    return f"./{path.name}"
