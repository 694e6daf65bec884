"""Split rows into usable ones, and unusable ones with their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from pipelines.data.row_reader import RowReader
from pipelines.data.rows import Examples, Numbered, Rejected, Unreadable, file_and_line
from pipelines.errors import DataError

SHOWN = 10  # rows that a message lists
WIDTH = 300  # characters of each reason, which may quote a long row
HINT = "\nCorrect them, or leave them out with --task.dataset.on-bad-row skip."


def to_examples(records: Iterable[Numbered], origin: str, local: bool) -> Examples:
    """Split valid rows from unreadable lines. Raise DataError if there are neither."""
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
    """Return the rows that a task can use; `rejected` lists the others by line."""
    usable, rejected = [], list(examples.rejected)
    for index, row in enumerate(examples.rows):
        try:
            task.example(examples, index, row, labels)
        except DataError as error:
            location = examples.locate(index)
            reason = str(error).removeprefix(f"{location}: ")
            number = examples.row_number(index)
            rejected.append(Rejected(examples.origin, number, location, reason, row))
        else:
            usable.append(index)
    if len(rejected) == len(examples.rejected):
        return examples
    rejected.sort(key=lambda each: each.line)
    return replace(examples.select(usable), rejected=tuple(rejected))


def check_columns(task: RowReader, *splits: tuple[Examples | None, Examples | None]) -> None:
    """Raise DataError for a split without usable rows if all its rows lack a column.

    `splits` are pairs of the rows that were read and those that are usable. The message names the
    option to change, in one line in place of one for each row.
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
    """Return the command-line flag of a task's option."""
    return f"--task.{option.replace('_', '-')}"


def similar(name: str, known: Sequence[str]) -> str:
    """Return a hint with the known name that is most similar, or ""."""
    by_letters = {each.strip().casefold(): each for each in reversed(known)}
    close = get_close_matches(name.strip().casefold(), by_letters, n=1, cutoff=0.5)
    return f" (did you mean {by_letters[close[0]]!r}?)" if close else ""


def raise_rejected(rejected: Sequence[Rejected], hint: str = "") -> None:
    """Raise DataError with the first unusable rows and the reasons, if there are any."""
    if not rejected:
        return
    lines = [f"{each.location}: {each.reason[:WIDTH]}" for each in rejected[:SHOWN]]
    if len(rejected) > SHOWN:
        lines.append(f"... and {len(rejected) - SHOWN:,} more.")
    raise DataError("\n".join(lines) + hint)
