"""The forms of several labels in a row: names, ids, and 0/1 vectors.

`[0, 1]` is either: the form of a column is decided once, from all training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pipelines.tasks.cells import parse_bit, parse_literal, to_python

Form = Literal["list", "multi_hot"]


def list_of(value: Any, separator: str | None) -> list[Any] | None:
    """Return the list in a cell, also in a text; None for other values."""
    value = to_python(value)
    if isinstance(value, str):
        if separator is not None:
            return [part for part in map(str.strip, value.split(separator)) if part]
        value = parse_literal(value)
    return value if isinstance(value, list) else None


def usual_length(lists: Sequence[Sequence[Any]]) -> int:
    """Return the length that most lists have; 0 if there are none."""
    return max(Counter(map(len, lists)).items(), key=lambda item: item[::-1], default=(0, 0))[0]


def find_form(lists: Sequence[Sequence[Any]], *, declared_ids: bool) -> Form | None:
    """Return the form of a column's lists, or None if both are possible.

    An id occurs once in a list, so that a list of only 0 and 1 with a repeated value is a vector.
    Lists that show nothing are ids if the dataset declares ids.
    """
    width = usual_length(lists)
    values = [value for each in lists for value in each]
    if any(isinstance(value, bool) for value in values):
        return "multi_hot"
    vectors = sum(is_vector(each) for each in lists if len(each) == width)
    if any(parse_bit(value) is None for value in values):  # names, ids, or mistakes in vectors
        return "multi_hot" if 2 * vectors > len(lists) else "list"
    if vectors:
        return "multi_hot"
    if {len(each) for each in lists} != {2} or declared_ids:
        return "list"
    return "multi_hot" if all(isinstance(value, float) for value in values) else None


def is_vector(values: Sequence[Any]) -> bool:
    """Tell a list of only 0 and 1 in which one of them is repeated."""
    bits = [parse_bit(value) for value in values]
    return None not in bits and len(set(bits)) < len(bits)


def read_vector(values: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Return the names of a vector's ones.

    Raise ValueError unless it has a 0 or 1 for each name.
    """
    if len(values) != len(names):
        raise ValueError(f"{values!r} has {len(values)} values for {len(names)} labels.")
    for value in values:
        if parse_bit(value) is None:
            raise ValueError(f"{value!r} is neither 0 nor 1.")
    return [name for name, value in zip(names, values, strict=True) if parse_bit(value)]
