"""Fit lengths into bins of equal capacity."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the rows of each bin of `capacity` tokens: the longest first, each where it fits best.

    No row may be longer than a bin.
    """
    bins: list[list[int]] = []
    spaces: list[int] = []  # of bins that are not full, each once, ascending
    with_space: dict[int, list[int]] = defaultdict(list)
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(spaces, lengths[row])
        if place < len(spaces):
            free = spaces[place]
            number = with_space[free].pop()
            if not with_space[free]:
                del spaces[place]
        else:
            free, number = capacity, len(bins)
            bins.append([])
        bins[number].append(row)
        left = free - lengths[row]
        if left and not with_space[left]:
            insort(spaces, left)
        with_space[left].append(number)
    return bins
