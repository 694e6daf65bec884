"""Rows from Python: texts, dictionaries or a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets

from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.tasks.base import Task

Rows = str | Mapping[str, Any] | Iterable[str | Mapping[str, Any]]
"""A text, a dictionary of columns, or several of them: a list, an iterator, a Dataset or one of its
columns of texts."""
ITERABLES = (Sequence, Iterator, datasets.Dataset, datasets.IterableDataset)
"""What holds rows. Others may iterate over something else, as a DataFrame does over its columns."""


def to_examples(task: Task, rows: Rows) -> Examples:
    """Return rows as a task reads them; one text or one dictionary is one row.

    A text becomes a row by `task.row`. Raise DataError for what holds no rows, and for a text where
    a row of the task needs several columns.
    """
    listed: Any = [rows] if isinstance(rows, str | Mapping) else rows
    if isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(f"a DatasetDict has the splits {', '.join(rows)}: give one of them.")
    if not isinstance(listed, ITERABLES) or isinstance(listed, bytes):
        raise DataError(
            f"a {type(rows).__name__} is not a list of rows. Give texts, dictionaries or a Dataset."
        )
    return Examples([to_row(task, row, index) for index, row in enumerate(listed)], "input")


def to_row(task: Task, row: object, index: int) -> dict[str, Any]:
    """Return one row as a dictionary. Raise DataError for what is neither that nor a text."""
    if isinstance(row, str):
        return task.row(row)
    if isinstance(row, Mapping):
        return dict(row)
    raise DataError(f"input row {index}: {row!r} is neither a text nor a dictionary of columns.")
