"""The best recipe of a search: written as a file that runs, and trained as an ordinary run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from pipelines.console import say
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.search.parameters import Value
from pipelines.search.space import values_at, with_values
from pipelines.search.study import OpenStudy

FILE = "best_recipe.json"


def train_best(opened: OpenStudy, trial: FrozenTrial) -> dict[str, Any]:
    """Write the recipe of the best trial and run it; return the metrics of the reported split.

    It is the trial's run again, and then looks at the test rows, for the first time in the search.
    """
    values = opened.values_of(trial)
    recipe = with_values(opened.recipe, values)
    folder = opened.plan.folder
    (folder / FILE).write_text(recipe.to_json(), encoding="utf-8")
    result = folder / "best"
    say(f"training the recipe of trial {trial.number}, {folder / FILE}, in {result}")
    finished = has_values(opened, result / "recipe.json", values)
    metrics = run(replace(recipe, output_dir=str(result), overwrite=not finished))
    say(f"Publish it with: gpt2-recipes publish {result} USER/NAME")
    return metrics


def has_values(opened: OpenStudy, file: Path, values: dict[str, Value]) -> bool:
    """Tell whether a result has these values.

    Otherwise it, or the checkpoints of one that was interrupted, are of an earlier best trial.
    """
    if not file.is_file():
        return False
    return values_at(Recipe.from_file(file), opened.plan.parameters) == values
