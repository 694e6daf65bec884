"""Cautions about label names: misspellings, missing values, lists, scales."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from pipelines.tasks.cells import parse_literal

MISSING = {"#N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "NULL", "null", "NaN", "nan", "NaT", "None"}
"""What pandas reads as a missing value; "none", an ordinary name of a class, is not among them."""
SEPARATORS = (";", "|", ",")
SHOWN, WIDTH = 10, 60  # labels that a caution names, and characters of each
MANY = 10  # classes from which on numbers may be a scale
FEW_ROWS = 10  # of a class, below which consecutive numbers may be a scale too


def similarity_key(name: str) -> str:
    """Return a key that similar spellings of a name have in common.

    It ignores case, Unicode form, invisible characters, white space, hyphens and leading zeros.
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
                "own; if they mean the same, spell them the same"
            )
    missing = [name for name in counts if name.strip() in MISSING]
    if missing:
        yield (
            f"labels that look like a missing value: {counted(missing, counts)}. Leave out such "
            "rows if they have no label"
        )


def list_cautions(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a caution about names that look like several labels."""

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
    """Yield a caution about labels that look like a scale, or that nearly all differ."""
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
    """Return names with their numbers of rows, the most frequent first."""
    ordered = sorted(names, key=lambda name: -counts[name])
    more = f" and {len(ordered) - SHOWN:,} more" if len(ordered) > SHOWN else ""
    return ", ".join(f"{name[:WIDTH]!r} ({counts[name]:,})" for name in ordered[:SHOWN]) + more
