"""Labels in reports: the number of rows of each, and their names on one line."""

from __future__ import annotations

from collections import Counter

from pipelines.data.row_facts import facts_of
from pipelines.data.rows import Examples
from pipelines.data.rows_on_disk import RowsOnDisk
from pipelines.tasks.base import Task

NUM_LABELS_SHOWN = 6  # labels whose names are in one line


def count_labels(task: Task, examples: Examples) -> Counter[str]:
    """Return the number of rows with each label; none for a stream or a task without labels."""
    if examples.streamed or task.stratified_by is None:
        return Counter()
    if isinstance(examples.rows, RowsOnDisk) and examples.rows.label_counts is not None:
        return Counter(examples.rows.label_counts)
    return Counter(name for names in facts_of(task, examples, "labels") for name in names)


def short_label(name: str) -> str:
    """Return a label on one line, cut to 40 characters."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= 40 else f"{name[:37]}..."
