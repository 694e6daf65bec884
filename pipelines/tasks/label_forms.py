"""The forms in which rows hold several labels: lists of names or ids, and 0/1 vectors.

`[0, 1]` is either: the form of a column is decided once, from all training rows.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pipelines.tasks.cells import parse_literal, to_python

Form = Literal["list", "multi_hot"]
BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
MISSING = {"#N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "NULL", "null", "NaN", "nan", "NaT", "None"}
"""What pandas reads as a missing value; "none", an ordinary name of a class, is not among them."""
SEPARATORS = (";", "|", ",")
SHOWN, WIDTH = 10, 60  # labels that a caution names, and characters of each
MANY = 10  # classes from which on numbers may be a scale
FEW_ROWS = 10  # of a class, below which consecutive numbers may be a scale too


def bit(value: Any) -> int | None:
    """Return 0 or 1 for a value that means no or yes, None for any other."""
    if isinstance(value, str):
        return BITS.get(value.strip().lower())
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def list_of(value: Any, separator: str | None) -> list[Any] | None:
    """Return the list in a cell, also one written as a text, or None if it holds none."""
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
    """Return the form of a column's lists, or None for lists that can be read both ways.

    An id is in a list once, so that a list of only 0 and 1 with a repeated value is a vector. Where
    nothing tells, lists are ids if the dataset declares them.
    """
    width = usual_length(lists)
    values = [value for each in lists for value in each]
    if any(isinstance(value, bool) for value in values):
        return "multi_hot"
    vectors = sum(is_vector(each) for each in lists if len(each) == width)
    if any(bit(value) is None for value in values):  # names or ids, or mistakes between vectors
        return "multi_hot" if 2 * vectors > len(lists) else "list"
    if vectors:
        return "multi_hot"
    if {len(each) for each in lists} != {2} or declared_ids:
        return "list"
    return "multi_hot" if all(isinstance(value, float) for value in values) else None


def is_vector(values: Sequence[Any]) -> bool:
    """Tell a list of only 0 and 1 in which one of them is repeated."""
    bits = [bit(value) for value in values]
    return None not in bits and len(set(bits)) < len(bits)


def read_vector(values: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Return the names of a vector's ones. Raise ValueError unless it has a 0 or 1 for each."""
    if len(values) != len(names):
        raise ValueError(f"{values!r} has {len(values)} values for {len(names)} labels.")
    for value in values:
        if bit(value) is None:
            raise ValueError(f"{value!r} is neither 0 nor 1.")
    return [name for name, value in zip(names, values, strict=True) if bit(value)]


def similarity_key(name: str) -> str:
    """Return what two spellings of one name have in common.

    Case, Unicode form, invisible characters, white space, hyphens and leading zeros do not count.
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", text.strip())
    return str(int(text)) if re.fullmatch(r"\+?[0-9]+", text) else " ".join(text.split())


def name_cautions(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield cautions about names that look like one label, or like a missing value."""
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(similarity_key(name), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            yield (
                f"labels that look like one: {counted(names, counts)}. Each is a label of its "
                "own; if they mean the same, write them alike"
            )
    missing = [name for name in counts if name.strip() in MISSING]
    if missing:
        yield (
            f"labels that look like a missing value: {counted(missing, counts)}. Leave out such "
            "rows if they have no label"
        )


def list_cautions(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a caution about single labels that are several: lists, or other labels joined."""

    def joins_others(name: str) -> bool:
        parts = [[part.strip() for part in name.split(each)] for each in SEPARATORS if each in name]
        return any(all(part in counts for part in each) for each in parts)

    names = [name for name in counts if not isinstance(parse_literal(name), str)]
    names += [name for name in counts if joins_others(name)]
    if names:
        yield (
            f"labels that look like several: {counted(names, counts)}. For several labels use "
            "--task.problem-type multi_label_classification"
        )


def number_cautions(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a caution about labels that look like a scale, or are nearly one a row."""
    num_rows, num_labels = sum(counts.values()), len(counts)
    if num_labels < MANY:
        return
    if 2 * num_labels > num_rows:
        yield (
            f"{num_labels:,} labels in {num_rows:,} rows, nearly one a row. Is this the column of "
            "the label? For numbers use --task.problem-type regression"
        )
        return
    if not all(re.fullmatch(r"[0-9]+", name) for name in counts):
        return
    numbers = sorted(map(int, counts))
    consecutive = numbers[-1] - numbers[0] + 1 == num_labels
    if not consecutive or num_rows < FEW_ROWS * num_labels:
        yield (
            f"the labels are {num_labels:,} numbers from {numbers[0]:,} to {numbers[-1]:,}. If "
            "they are a scale, use --task.problem-type regression"
        )


def constant_cautions(counts: Mapping[str, int], num_rows: int) -> Iterator[str]:
    """Yield a caution about labels that every row has."""
    names = [name for name, count in counts.items() if count == num_rows]
    if names:
        yield (
            "labels that every training row has, so that they cannot be learned: "
            f"{counted(names, counts)}"
        )


def counted(names: Iterable[str], counts: Mapping[str, int]) -> str:
    """Return names with the number of their rows, the most frequent first."""
    ordered = sorted(names, key=lambda name: -counts[name])
    more = f" and {len(ordered) - SHOWN:,} more" if len(ordered) > SHOWN else ""
    return ", ".join(f"{name[:WIDTH]!r} ({counts[name]:,})" for name in ordered[:SHOWN]) + more
