"""What a search compares trials by. Imports neither torch nor Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import suggest


@dataclass(frozen=True)
class Objective:
    """A metric of the validation rows, and its direction."""

    name: str
    greater_is_better: bool

    def value_in(self, metrics: Mapping[str, Any]) -> float:
        """Return the metric's value."""
        return float(metrics[self.name])


def objective_of(recipe: Recipe, metric: str | None) -> Objective:
    """Return the metric with a name; without one, that by which the recipe chooses weights.

    That is train.metric_for_best, or the task's primary metric. Raise RecipeError for a name that
    the task does not have.
    """
    known = recipe.task.metrics
    name = metric or recipe.train.metric_for_best or next(iter(known))
    if name not in known:
        text = f"{name!r} is not a metric of {type(recipe.task).__name__}; "
        raise RecipeError([Problem("metric", text + suggest(name, list(known)))])
    return Objective(name, known[name])
