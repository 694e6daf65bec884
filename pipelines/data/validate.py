"""Split rows into usable ones, and unusable ones with their reasons."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from pipelines.data.row_facts import FACTS
from pipelines.data.row_reader import RowReader
from pipelines.data.rows import Examples, Numbered, Rejected, Unreadable, file_and_line
from pipelines.data.rows_on_disk import RowsOnDisk, map_rows
from pipelines.errors import DataError

SHOWN = 10  # rows that a message lists
WIDTH = 300  # characters of each reason, which may quote a long row
OTHER_ROWS = (
    " The training rows have what is missing. To score on other rows name their split by "
    "--task.dataset.eval-split or --task.dataset.test-split; None holds out training rows."
)
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


@dataclass(frozen=True)
class Checked:
    """Positions of the usable rows among some, and of the others, with the reasons."""

    usable: list[int]
    unusable: list[tuple[int, str]]
    facts: dict[str, list[Any]]
    """The facts of each usable row, as named in `data.row_facts`. Empty for rows in memory."""


def drop_unusable(task: RowReader, examples: Examples, labels: tuple[str, ...] | None) -> Examples:
    """Return the rows that a task can use; `rejected` lists the others by line."""
    rows = examples.sequence
    usable, rejected = array("q"), list(examples.rejected)
    facts: dict[str, list[Any]] = {name: [] for name in names_of_facts(examples)}
    same: dict[Any, Any] = {}
    for part in map_rows(partial(check_rows, task, examples, labels), rows):
        usable.extend(part.usable)
        for name, values in part.facts.items():
            shared = name == "labels"  # many rows have the same
            facts[name] += (same.setdefault(each, each) for each in values) if shared else values
        for index, reason in part.unusable:
            number, location = examples.row_number(index), examples.locate(index)
            rejected.append(Rejected(examples.origin, number, location, reason, rows[index]))
    if len(rejected) > len(examples.rejected):
        rejected.sort(key=lambda each: each.line)
        examples = replace(examples.select(usable), rejected=tuple(rejected))
    if isinstance(examples.rows, RowsOnDisk):
        examples = replace(examples, rows=examples.rows.with_facts(facts))
    return examples


def names_of_facts(examples: Examples) -> Sequence[str]:
    """Return the facts that are kept: of rows in memory none, since they are read again at once."""
    return [*FACTS] if isinstance(examples.rows, RowsOnDisk) else []


def check_rows(
    task: RowReader, examples: Examples, labels: tuple[str, ...] | None, positions: range
) -> Checked:
    """Return which rows at some positions a task can use."""
    checked = Checked([], [], {name: [] for name in names_of_facts(examples)})
    for index, row in examples.at(positions):
        try:
            task.example(examples, index, row, labels)
        except DataError as error:
            reason = str(error).removeprefix(f"{examples.locate(index)}: ")
            checked.unusable.append((index, reason))
            continue
        checked.usable.append(index)
        for name, values in checked.facts.items():
            values.append(FACTS[name](task, examples, index, row))
    return checked


def check_columns(task: RowReader, *splits: tuple[Examples | None, Examples | None]) -> None:
    """Raise DataError for a split without usable rows if all its rows lack a column.

    `splits` are pairs of the rows that were read and those that are usable, the training rows
    first. The message names the option to change, in one line in place of one for each row.
    """
    lines = []
    _, trainable = splits[0]
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
            hint = OTHER_ROWS if trainable is not None and trainable.rows else ""
            lines.append(f"{read_rows.origin}: {'; '.join(missing)}. Columns: {columns}.{hint}")
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
