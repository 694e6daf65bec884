"""What splitting and cautions need to know of rows, so that those on disk are read once for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from pipelines.data.row_reader import RowReader
from pipelines.data.row_selection import compact_key
from pipelines.data.rows import Examples, hash_of
from pipelines.data.rows_on_disk import RowsOnDisk

Fact = Callable[[RowReader, Examples, int, dict[str, Any]], Any]


def _group(task: RowReader, examples: Examples, index: int, row: dict[str, Any]) -> Hashable:
    """Return the key of a row's group."""
    return compact_key(task.group(row))


def _inputs(task: RowReader, examples: Examples, index: int, row: dict[str, Any]) -> Hashable:
    """Return a key of the part of a row that the model reads."""
    return compact_key(task.inputs(row))


def _labels(
    task: RowReader, examples: Examples, index: int, row: dict[str, Any]
) -> tuple[str, ...]:
    """Return the names of a row's labels."""
    return tuple(task.row_labels(examples, index, row))


def _id(task: RowReader, examples: Examples, index: int, row: dict[str, Any]) -> Hashable:
    """Return a key of a row's id, or None."""
    return None if row.get("id") is None else compact_key(str(row["id"]))


def _hash(task: RowReader, examples: Examples, index: int, row: dict[str, Any]) -> bytes:
    """Return a hash of a row's content."""
    return hash_of(row)


FACTS: dict[str, Fact] = {
    "groups": _group,
    "inputs": _inputs,
    "labels": _labels,
    "ids": _id,
    "hashes": _hash,
}


def facts_of(task: RowReader, examples: Examples, name: str) -> Sequence[Any]:
    """Return a fact of each usable row, by its name in FACTS."""
    rows = examples.rows
    if isinstance(rows, RowsOnDisk) and rows.facts is not None:
        return rows.facts[name]
    read = FACTS[name]
    return [read(task, examples, index, row) for index, row in enumerate(rows)]
