"""How many rows have each label, and how labels are shown."""

from __future__ import annotations

from collections import Counter

from pipelines.data.rows import Examples
from pipelines.tasks.base import Task

NUM_NAMED = 6  # labels that a line names


def count_labels(task: Task, examples: Examples) -> Counter[str]:
    """Return how many rows have each label; nothing for a task without labels or a stream."""
    if examples.streamed or task.stratified_by is None:
        return Counter()
    return Counter(
        name
        for index, row in enumerate(examples.rows)
        for name in task.row_labels(examples, index, row)
    )


def printable(name: str) -> str:
    """Return a label short and on one line."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= 40 else f"{name[:37]}..."
