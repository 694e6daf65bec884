"""The file rejected.jsonl: the unusable rows that a run has skipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.data.rows import Rejected, file_and_line


def read_lines(file: Path | None) -> set[str]:
    """Return the different lines of a file; none if it does not exist."""
    if file is None or not file.exists():
        return set()
    return set(file.read_text(encoding="utf-8").splitlines())


def append_rejected(file: Path, rejected: Sequence[Rejected], known: set[str]) -> None:
    """Append rows to the file unless their lines are in `known`, and add them there.

    A stream reads its rows again in each epoch, and when it resumes.
    """
    lines = []
    for each in rejected:
        origin, line = file_and_line(each.file, each.line)
        entry = {"file": origin, "line": line, "reason": each.reason, "row": each.row}
        lines.append(json.dumps(entry, default=str))
    new = [line for line in dict.fromkeys(lines) if line not in known]
    if new:
        with file.open("a", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in new)
    known.update(new)
