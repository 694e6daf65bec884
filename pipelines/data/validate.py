"""Keep the rows that a task can use, and name the others by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipelines.data.row_reader import RowReader
from pipelines.data.rows import Examples, Numbered, Rejected, Unreadable, file_and_line
from pipelines.errors import DataError

SHOWN = 10  # rows that a message names
WIDTH = 300  # characters that it says of each: a row can be long
HINT = "\nCorrect them, or leave them out with --task.dataset.on-bad-row skip."


def to_examples(records: Iterable[Numbered], origin: str, local: bool) -> Examples:
    """Split rows from unreadable lines. Raise DataError where there is neither."""
    rows: list[dict[str, Any]] = []
    numbers, rejected = [], []
    for number, row in records:
        if isinstance(row, Unreadable):
            file, line = file_and_line(origin, number)
            rejected.append(Rejected(origin, number, f"{file}:{line}", row.reason, row.content))
        else:
            rows.append(row)
            numbers.append(number)
    if not rows and not rejected:
        raise DataError(f"{origin}: no rows.")
    lines, others = (numbers, None) if local else (None, numbers)
    return Examples(rows, origin, lines, numbers=others, rejected=tuple(rejected))


def drop_unusable(task: RowReader, examples: Examples, labels: tuple[str, ...] | None) -> Examples:
    """Return the rows that a task can use; the others are listed in `rejected`, by line."""
    kept, rejected = [], list(examples.rejected)
    for index, row in enumerate(examples.rows):
        try:
            task.example(examples, index, row, labels)
        except DataError as error:
            location = examples.locate(index)
            reason = str(error).removeprefix(f"{location}: ")
            number = examples.row_number(index)
            rejected.append(Rejected(examples.origin, number, location, reason, row))
        else:
            kept.append(index)
    if len(rejected) == len(examples.rejected):
        return examples
    rejected.sort(key=lambda each: each.line)
    return replace(examples.select(kept), rejected=tuple(rejected))


def check_columns(task: RowReader, *splits: tuple[Examples | None, Examples | None]) -> None:
    """Raise DataError where the task can use no row because no row has a column that it reads.

    `splits` are rows as they were read, and the usable ones of them. Thousands of rows that all
    lack the same column are then one line that says which option to change.
    """
    lines = []
    for read_rows, usable in splits:
        if read_rows is None or usable is None or read_rows.streamed:
            continue
        if usable.rows or not read_rows.rows:
            continue
        present = list(dict.fromkeys(column for row in read_rows.rows for column in row))
        missing = [
            f"no column {column!r}, which {flag_of(option)} names{similar(column, present)}"
            for option, column in task.columns()
            if column not in present
        ]
        if missing:
            columns = ", ".join(present)
            lines.append(f"{read_rows.origin}: {'; '.join(missing)}. Columns: {columns}.")
    if lines:
        raise DataError("\n".join(lines))


def flag_of(option: str) -> str:
    """Return the flag of a task's option as it is typed."""
    return f"--task.{option.replace('_', '-')}"


def similar(name: str, known: Sequence[str]) -> str:
    """Return a hint that names the most similar of some names, or ""."""
    by_letters = {each.strip().casefold(): each for each in reversed(known)}
    close = get_close_matches(name.strip().casefold(), by_letters, n=1, cutoff=0.5)
    return f" (did you mean {by_letters[close[0]]!r}?)" if close else ""


def raise_rejected(rejected: Sequence[Rejected], hint: str = "") -> None:
    """Raise DataError that names the first rows that cannot be used, if there are any."""
    if not rejected:
        return
    lines = [f"{each.location}: {each.reason[:WIDTH]}" for each in rejected[:SHOWN]]
    if len(rejected) > SHOWN:
        lines.append(f"... and {len(rejected) - SHOWN:,} more.")
    raise DataError("\n".join(lines) + hint)


def lines_of(file: Path | None) -> set[str]:
    """Return the lines of a file, if it is there."""
    if file is None or not file.exists():
        return set()
    return set(file.read_text(encoding="utf-8").splitlines())


def append_rejected(file: Path, rejected: Sequence[Rejected], known: set[str]) -> None:
    """Append rows to rejected.jsonl unless their lines are known, and note them there.

    A stream meets its rows again in each epoch, and when it resumes.
    """
    lines = []
    for each in rejected:
        origin, line = file_and_line(each.file, each.line)
        entry = {"file": origin, "line": line, "reason": each.reason, "row": each.row}
        lines.append(json.dumps(entry, default=str))
    new = [line for line in lines if line not in known]
    if new:
        with file.open("a", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in new)
    known.update(new)
