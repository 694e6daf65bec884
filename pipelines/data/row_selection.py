"""Choose rows by a seed: stratified by label, rows with the same input together.

The choice depends only on the rows' inputs, labels and order and on the seed: not on the process,
the machine, Python's hash seed or rows that were left out before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

LONG_TEXT = 32  # characters above which a hash takes less memory

T = TypeVar("T")
Label = str | None  # None: rows without a label


@dataclass(frozen=True, slots=True)
class Group:
    """Indices of the rows with one input, and the number of them with each label."""

    rows: Sequence[int]
    counts: Mapping[Label, int]

    def fits(self, most: Mapping[Label, int]) -> bool:
        """Tell whether no label has more rows than allowed."""
        return all(count <= most[label] for label, count in self.counts.items())


def hold_out_rows(
    inputs: Sequence[Hashable], labels: Sequence[Sequence[str]], fraction: float, seed: int
) -> list[int]:
    """Return the indices of the rows to hold out, ascending.

    Return [] if no row can be held out. Rows with equal inputs stay together. As far as groups
    allow, each label has its fraction to within one row, and at least one row if the total allows.
    One row of each label always remains.
    """
    groups = random_groups(inputs, labels, seed)
    sizes = num_rows_by_label(groups)
    wanted = allot(sizes, fraction, num_left=1)
    most = Counter({label: size - 1 for label, size in sizes.items()})
    chosen, others = choose(groups, wanted, most, len(inputs) - 1)
    if not chosen:  # every group has more rows than wanted: take the smallest
        allowed = [group for group in others if group.fits(most)]
        chosen = sorted(allowed, key=lambda group: len(group.rows))[:1]
    return sorted(row for group in chosen for row in group.rows)


def draw_rows(
    inputs: Sequence[Hashable], labels: Sequence[Sequence[str]], count: int, seed: int
) -> list[int]:
    """Return the indices of `count` rows, or of all if there are fewer, ascending.

    Each label keeps its fraction, and has at least one row if `count` allows. Rows with equal
    inputs are chosen together, except for the last rows, which fill up the count.
    """
    if count >= len(inputs):
        return list(range(len(inputs)))
    groups = random_groups(inputs, labels, seed)
    sizes = num_rows_by_label(groups)
    wanted = allot(sizes, count / len(inputs), num_left=0)
    chosen, others = choose(groups, wanted, sizes, count)
    rows = [row for group in chosen for row in group.rows]
    rest = [row for group in shuffled(others, seed) for row in group.rows]
    return sorted(rows + rest[: count - len(rows)])


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Return items in random order.

    Python guarantees the values of `random()` across versions, not those of a shuffle.
    """
    generator = Random(seed)
    return sorted(items, key=lambda _: generator.random())


def compact_key(value: Hashable) -> Hashable:
    """Return a key that is equal where values are, with a hash in place of each long text."""
    if isinstance(value, str) and len(value) > LONG_TEXT:
        return hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=16).digest()
    if isinstance(value, tuple):
        return tuple(map(compact_key, value))
    return value


def random_groups(
    inputs: Sequence[Hashable], labels: Sequence[Sequence[str]], seed: int
) -> list[Group]:
    """Return the rows grouped by input, in random order.

    Groups with the rarest labels come first. With several labels a row, frequent labels would
    otherwise use up the few rows that rare labels can be drawn from.
    """
    alone: dict[Hashable, int] = {}  # most inputs are those of one row
    rows: dict[Hashable, list[int]] = {}
    for index, value in enumerate(inputs):
        if value not in alone:
            alone[value] = index
        else:
            rows.setdefault(value, [alone[value]]).append(index)
    counts_of: dict[tuple[str, ...], Mapping[Label, int]] = {}  # shared by all of one row
    unordered = []
    for value, index in alone.items():
        if value in rows:
            chosen = rows[value]
            counts = Counter[Label](name for row in chosen for name in labels[row] or (None,))
            unordered.append(Group(chosen, counts))
            continue
        names = tuple(labels[index])
        if names not in counts_of:
            counts_of[names] = Counter[Label](names or (None,))
        unordered.append(Group((index,), counts_of[names]))
    sizes = num_rows_by_label(unordered)
    return sorted(shuffled(unordered, seed), key=lambda group: min(sizes[n] for n in group.counts))


def num_rows_by_label(groups: Sequence[Group]) -> Counter[Label]:
    """Return the number of rows with each label."""
    sizes: Counter[Label] = Counter()
    for group in groups:
        for label, count in group.counts.items():
            sizes[label] += count
    return sizes


def allot(sizes: Mapping[Label, int], fraction: float, *, num_left: int) -> Counter[Label]:
    """Return the number of rows to choose of each label.

    At least `num_left` rows of each label are left. Each label has its fraction, rounded by the
    largest remainder method. A label with a fraction below one row has one row, unless there are
    more labels than rows.
    """
    total = max(1, round(fraction * sum(sizes.values())))
    exact = {label: fraction * size for label, size in sizes.items()}
    most = {label: size - num_left for label, size in sizes.items() if size > num_left}
    counts = Counter({label: min(int(exact[label]), most[label]) for label in most})
    if len(most) <= total:
        counts = Counter({label: max(1, counts[label]) for label in most})
    missing = total - sum(counts.values())
    behind = [label for label in most if counts[label] < min(exact[label], most[label])]
    behind.sort(key=lambda label: counts[label] - exact[label])
    counts.update(behind[: max(missing, 0)])
    return counts


def choose(
    groups: Sequence[Group], wanted: Counter[Label], most: Counter[Label], limit: int
) -> tuple[list[Group], list[Group]]:
    """Split groups into those that bring counts closer to `wanted`, and others.

    The chosen groups have at most `limit` rows, and at most `most` of each label.
    """
    missing, most = Counter(wanted), Counter(most)
    chosen: list[Group] = []
    others: list[Group] = []
    for group in groups:
        gain = sum(
            abs(missing[label]) - abs(missing[label] - count)
            for label, count in group.counts.items()
        )
        if gain > 0 and len(group.rows) <= limit and group.fits(most):
            chosen.append(group)
            limit -= len(group.rows)
            for label, count in group.counts.items():
                missing[label] -= count
                most[label] -= count
        else:
            others.append(group)
    return chosen, others
