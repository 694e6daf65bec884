"""Exported folders, used as their README.md says."""

import contextlib
import io
from pathlib import Path

from helpers.documents import blocks_of


def run_snippet(folder: Path) -> str:
    """Execute the Python of a folder's README.md in the folder; return what it prints."""
    (code,) = blocks_of(folder / "README.md", "python")
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue()
