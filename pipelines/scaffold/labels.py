"""Guess what the labels of a column are: one of several, a list of them, or a number."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.scaffold.columns import Column, as_whole
from pipelines.scaffold.look import Look
from pipelines.tasks.label_cautions import SEPARATORS

MANY_NUMBERS = 20  # different whole numbers above which they are a scale
MANY_LABELS = 100
UNBALANCED = 10  # times as many rows of a label as of another, from which on they are weighted
SHOWN = 4
Line = tuple[str, str, str, str]  # subject, value, reason, flag


def label_options(column: Column, look: Look) -> tuple[dict[str, Any], list[Line]]:
    """Return the options of TextClassification for a column of labels, and why."""
    several = "multi_label_classification"
    if column.kind == "list":
        line = ("labels", "several a row", "the cells are lists", "")
        return {"problem_type": several}, [line]
    if is_scale(column, look):
        numbers = "fractions" if column.has_fractions else f"{len(column.counts)} whole numbers"
        line = ("labels", "a number to predict (regression)", f"the cells hold {numbers}", "")
        return {"problem_type": "regression"}, [line]
    if separator := separator_of(column):
        line = (
            "labels",
            "several a row",
            f"joined by {separator!r} in {joined(column, separator)}",
            "",
        )
        return {"problem_type": several, "label_separator": separator}, [line]
    counts = named_counts(column, look)
    line = ("labels", f"one of {len(counts):,}", describe_counts(counts), "")
    options: dict[str, Any] = {}
    lines = [line]
    most, fewest = max(counts.values()), min(counts.values())
    if most >= UNBALANCED * fewest and len(counts) <= MANY_LABELS:
        options["class_weights"] = "balanced"
        why = f"the most frequent label has {most:,} rows, the rarest {fewest:,}"
        lines.append(("weights", "balanced", why, "--task.class-weights None"))
    return options, lines


def is_scale(column: Column, look: Look) -> bool:
    """Tell numbers that are measured from those that name classes."""
    if column.kind != "number" or column.name in getattr(look.examples, "label_names", {}):
        return False
    return column.has_fractions or len(column.counts) > MANY_NUMBERS


def separator_of(column: Column) -> str | None:
    """Return the character that joins several labels in the texts of a column, or None.

    It does if the parts occur again and again: there are fewer of them than of whole texts.
    """
    for separator in SEPARATORS:
        if not any(separator in name for name in column.counts):
            continue
        parts = Counter(
            part.strip() for name in column.counts for part in name.split(separator) if part.strip()
        )
        alone = sum(separator not in name and name.strip() in parts for name in column.counts)
        repeated = 2 * len(parts) <= sum(parts.values())
        if repeated or (alone >= 2 and len(parts) < len(column.counts)):
            return separator
    return None


def joined(column: Column, separator: str) -> str:
    """Return an example of labels that are joined."""
    return repr(next(name for name in column.counts if separator in name))


def named_counts(column: Column, look: Look) -> Counter[str]:
    """Return the number of rows of each label, by the names that the data set declares."""
    declared = () if look.examples is None else look.examples.label_names.get(column.name, ())
    counts: Counter[str] = Counter()
    for value, count in column.counts.items():
        number = as_whole(value)
        known = number is not None and 0 <= number < len(declared)
        counts[declared[number] if known and number is not None else value] += count
    return counts


def describe_counts(counts: Counter[str]) -> str:
    """Return the labels with their rows, and a caution where they are many."""
    listed = [f"{name[:30]} {count:,}" for name, count in counts.most_common(SHOWN)]
    more = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    text = f"rows of each: {', '.join(listed)}{more}"
    if len(counts) > MANY_LABELS:
        mean = counts.total() / len(counts)
        text += f"; on average {mean:.1f} rows a label, and a rare label is hardly learned"
    return text
