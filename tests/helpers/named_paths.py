"""Paths that the files of a result name."""

import re
from pathlib import Path

TEXTS = (".json", ".jsonl", ".html", ".md", ".log", ".jinja", ".yaml", ".txt", ".py")
TO_BE_MADE = ("-again", "-merged")
"""Ends of the folders that commands in a report would write."""


def paths_that_are_gone(folder: Path, root: Path) -> set[str]:
    """Return the paths below `root` that a file of a folder names, and that do not exist.

    A path may end in the number of a row, as in rows.jsonl:3.
    """
    named = set()
    pattern = re.compile(re.escape(str(root)) + r"/[^\s\"'<>&;,:)`\\]*")
    texts = [file for file in folder.rglob("*") if file.suffix in TEXTS]
    assert texts
    for file in texts:
        found = pattern.findall(file.read_text(encoding="utf-8"))
        named |= {path.rstrip("./") for path in found}
    return {path for path in named if not path.endswith(TO_BE_MADE) and not Path(path).exists()}
