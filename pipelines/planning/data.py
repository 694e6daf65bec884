"""What a run reads: rows, tokens, lengths, labels, and inputs that two splits share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.splits import Splits
from pipelines.inputs import Encoded
from pipelines.reporting.cautions import shared_inputs
from pipelines.reporting.labels import count_labels
from pipelines.tasks.base import Features, Task

LENGTHS = (64, 128, 256, 512, 1024)
"""Tokens at which rows could be cut; the model's most comes last."""
UNLIMITED = 2**31
"""More positions than this are no limit."""


@dataclass(frozen=True)
class SplitSummary:
    """One split; numbers of tokens are None for a stream, which is read while training."""

    rows: int | None
    tokens: int | None
    """Tokens of all rows as the model reads them."""
    median: int | None
    """Tokens of a row before it is cut."""
    percentile_95: int | None
    longest: int | None
    limit: int
    cut_at: dict[int, int]
    """Rows that would be cut at other limits."""
    labels: dict[str, int]


@dataclass(frozen=True)
class Shared:
    """Rows of a split whose input another split has, too."""

    split: str
    other: str
    rows: int
    of: int


def summarize_splits(
    task: Task, splits: Splits, encoded: Encoded, num_positions: int
) -> dict[str, SplitSummary]:
    """Return a summary of the training split and of each that is scored."""
    examples = {"train": splits.train, **splits.scored}
    return {
        name: summarize(
            task,
            features,
            num_positions,
            rows=None if examples[name].streamed else examples[name].num_rows,
            labels=dict(count_labels(task, examples[name]).most_common()),
        )
        for name, features in encoded.features.items()
    }


def summarize(
    task: Task, features: Features, num_positions: int, *, rows: int | None, labels: dict[str, int]
) -> SplitSummary:
    """Return the summary of one split."""
    cut_limit = int(getattr(task, task.cut_field if features.lengths else task.length_field))
    if not isinstance(features.dataset, Sequence):
        return SplitSummary(rows, None, None, None, None, cut_limit, {}, labels)
    encoded = [task.num_tokens(row) for row in features.dataset]
    lengths: Sequence[int] = features.lengths or encoded
    at: Any = [np.percentile(lengths, q, method="higher") for q in (50, 95, 100)]
    most = {num_positions} if num_positions < UNLIMITED else set()
    limits = sorted({each for each in LENGTHS if each < num_positions} | most | {cut_limit})
    return SplitSummary(
        rows=rows,
        tokens=sum(encoded),
        median=int(at[0]),
        percentile_95=int(at[1]),
        longest=int(at[2]),
        limit=cut_limit,
        cut_at={limit: sum(length > limit for length in lengths) for limit in limits}
        if features.lengths
        else {},
        labels=labels,
    )


def find_shared(task: Task, splits: Splits) -> list[Shared]:
    """Return the overlaps of splits; none for a stream's training rows."""
    return [Shared(*each) for each in shared_inputs(task, splits)]
