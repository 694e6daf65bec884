"""Options that hold a number for each label: weights in the loss, and probability thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.errors import Problem, RecipeError

if TYPE_CHECKING:
    import numpy as np


def wrong_weights(weights: Any) -> Iterator[str]:
    """Yield a message for each weight of a label that is not a finite number above 0."""
    for name, weight in numbers_of(weights):
        if isinstance(weight, bool) or not 0 < weight < math.inf:
            yield f"the weight of {name!r} is {weight}; it must be a number above 0."


def wrong_thresholds(thresholds: Any) -> Iterator[str]:
    """Yield a message for each threshold that is not between 0 and 1."""
    for name, threshold in numbers_of(thresholds):
        if not 0 < threshold < 1:
            yield f"the threshold of {name!r} is {threshold}; it must be between 0 and 1."


def numbers_of(values: Any) -> Iterator[tuple[Any, float]]:
    """Yield the numbers of a dictionary with their names; the types are checked elsewhere."""
    if isinstance(values, dict):
        yield from ((name, v) for name, v in values.items() if isinstance(v, int | float))


def check_names(option: str, values: Mapping[str, float], labels: Sequence[str]) -> None:
    """Raise RecipeError unless an option of the task has a number for each label, and no other."""
    unknown = [name for name in values if name not in labels]
    missing = [name for name in labels if name not in values]
    if unknown or missing:
        parts = [f"{', '.join(map(repr, unknown))} is not a label"] if unknown else []
        parts += [f"no value for {', '.join(map(repr, missing))}"] if missing else []
        text = f"{'; '.join(parts)}. Give a value for each label: {', '.join(labels)}."
        raise RecipeError([Problem(f"task.{option}", text)])


def balanced_class_weights(counts: np.ndarray[Any, Any]) -> list[float]:
    """Return `rows / (classes * rows of the class)` for each class, from the rows of each.

    As scikit-learn's "balanced": the mean weight over the rows is 1. Only classes that have rows
    are counted; the others get weight 1, which only label smoothing uses.
    """
    num_classes = (counts > 0).sum()
    return [float(counts.sum() / (num_classes * count)) if count else 1.0 for count in counts]


def balanced_positive_weights(counts: np.ndarray[Any, Any], num_rows: int) -> list[float]:
    """Return `rows without / rows with` for each label, from the rows with it.

    The positive rows of a label then weigh as much as its negative ones. A label that no row has,
    or every row, gets weight 1.
    """
    return [float((num_rows - count) / count) if 0 < count < num_rows else 1.0 for count in counts]
