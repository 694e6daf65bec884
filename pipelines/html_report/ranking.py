"""The rows that a model does worst and best on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.tasks.base import RowResult, ShownResult, Task

NUM_WORST, NUM_BEST = 8, 4


@dataclass(frozen=True)
class RankedRow:
    """A row with its number among the results, its location, and what is shown of it."""

    index: int
    row: str
    shown: ShownResult


def worst_and_best(
    task: Task, results: Sequence[RowResult]
) -> tuple[list[RankedRow], list[RankedRow]]:
    """Return the worst rows, worst first, and the best rows, best first; no row is in both."""
    ranked = sorted(
        (RankedRow(index, each.row, task.shown(each)) for index, each in enumerate(results)),
        key=lambda each: each.shown.rank,
    )
    num_worst = min(NUM_WORST, math.ceil(len(ranked) * NUM_WORST / (NUM_WORST + NUM_BEST)))
    num_best = min(NUM_BEST, len(ranked) - num_worst)
    return ranked[:num_worst], ranked[::-1][:num_best]
