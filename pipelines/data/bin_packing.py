"""Fit lengths into bins of equal capacity."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the row indices of each bin of `capacity` tokens, by best-fit decreasing.

    No row may be longer than a bin.
    """
    bins: list[list[int]] = []
    spaces: list[int] = []  # the different free spaces of bins that are not full, ascending
    with_space: dict[int, list[int]] = defaultdict(list)
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        index = bisect_left(spaces, lengths[row])
        if index < len(spaces):
            free = spaces[index]
            number = with_space[free].pop()
            if not with_space[free]:
                del spaces[index]
        else:
            free, number = capacity, len(bins)
            bins.append([])
        bins[number].append(row)
        left = free - lengths[row]
        if left and not with_space[left]:
            insort(spaces, left)
        with_space[left].append(number)
    return bins
