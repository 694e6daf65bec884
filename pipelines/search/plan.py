"""What a search is to do: the recipe, the space and how it is searched, all checked.

Imports neither torch nor Optuna.
"""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from annotated_types import Ge

from pipelines.data.source import DEFAULT_TEST_FRACTION
from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import union_members, wrong_values
from pipelines.recipe_cli import parse
from pipelines.search.objective import Objective, objective_of
from pipelines.search.parameters import Parameter, value_of
from pipelines.search.space import corner_recipes, split_words

NUM_TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    """Flags of `gpt2-recipes search`, which come before or after those of the recipe."""

    trials: Annotated[int, Ge(1)] | None = None
    """Trials in total, of all workers and of earlier commands; 20, or all of a grid."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How values are chosen: by a model of the finished trials, at random, or each combination."""
    prune: Literal["median", "hyperband"] | None = None
    """Stop trials whose evaluations are worse than those of others at the same step."""
    metric: str | None = None
    """Metric of the validation rows by which trials are compared; by default that by which the
    recipe chooses the best weights, the task's primary one."""
    storage: Literal["sqlite", "journal"] | None = None
    """File of the study; sqlite by default, journal for a disk that several machines share."""
    seed: Annotated[int, Ge(0)] = 42
    """Seed of the values to try."""
    keep_trials: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep the weights of every trial."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search that may start."""

    recipe: Recipe
    """The recipe with the plain values of the command line."""
    parameters: tuple[Parameter, ...]
    flags: SearchFlags
    objective: Objective
    folder: Path
    """Folder of the study, its trials and the best result."""

    @property
    def num_trials(self) -> int:
        """Trials in total; a grid has no more than its combinations."""
        if self.flags.sampler != "grid":
            return self.flags.trials or NUM_TRIALS
        size = math.prod(len(each.grid or ()) for each in self.parameters)
        return min(self.flags.trials or size, size)


def split_flags(words: Sequence[str]) -> tuple[SearchFlags, list[str]]:
    """Separate the flags of `search`, which may be anywhere, from the other words.

    Raise RecipeError for a wrong value.
    """
    parser = argparse.ArgumentParser("gpt2-recipes search", add_help=False, allow_abbrev=False)
    hints = typing.get_type_hints(SearchFlags, include_extras=True)
    for each in fields(SearchFlags):
        names = dict.fromkeys((f"--{each.name.replace('_', '-')}", f"--{each.name}"))
        action = "store_true" if bool in union_members(hints[each.name]) else "store"
        parser.add_argument(*names, action=action, default=None)
    typed, others = parser.parse_known_args(words)
    values: dict[str, Any] = {}
    for name, value in vars(typed).items():
        if isinstance(value, str):
            values[name] = value_of(value, union_members(hints[name]))
        elif value is not None:
            values[name] = value
    flags = SearchFlags(**values)
    if problems := list(wrong_values(flags, "")):
        raise RecipeError(problems)
    return flags, others


def make_plan(recipe: Recipe, flags: SearchFlags, words: Sequence[str]) -> Plan:
    """Return the search that a command line asks for.

    Raise RecipeError with what is wrong with the space, at its bounds too, and with the flags.
    """
    parameters, plain = split_words(recipe, words)
    chosen = parse(recipe, ["gpt2-recipes search", *plain])
    folder = Path(chosen.output_dir or f"runs/{chosen.name}-search")
    problems = [*wrong_space(parameters, flags), *unusable(chosen)]
    if problems:
        raise RecipeError(problems)
    base = for_search(chosen)
    recipes = corner_recipes(base, parameters)
    objectives = dict.fromkeys(objective_of(each, flags.metric) for each in recipes)
    problems = [*wrong_objectives(objectives), *wrong_pruning(recipes, flags)]
    if problems:
        raise RecipeError(problems)
    [objective] = objectives
    return Plan(recipe=base, parameters=parameters, flags=flags, objective=objective, folder=folder)


def for_search(recipe: Recipe) -> Recipe:
    """Return a recipe that publishes nothing, and whose best values are scored on test rows.

    Raise RecipeError if it has none: the score of the rows that values are chosen by is too good.
    """
    source = recipe.task.dataset
    given = source.test_split is not None or source.test_fraction is not None
    if not given and not source.streaming:  # no rows can be held out of a stream
        source = replace(source, test_fraction=DEFAULT_TEST_FRACTION)
    if not source.has_test:
        text = "a search chooses by the validation rows, so that the best result needs other rows "
        text += "for its score. Name a test_split, or set a test_fraction unless it is a stream."
        raise RecipeError([Problem("task.dataset.test_split", text)])
    task = replace(recipe.task, dataset=replace(source, scored_split="auto"))
    return replace(recipe, task=task, output_dir=None, push_to=None, public=False)


def wrong_space(parameters: Sequence[Parameter], flags: SearchFlags) -> list[Problem]:
    """Return what is wrong with a space as a whole: there is none, or a grid cannot be made."""
    if not parameters:
        text = "gives no parameter to search. Add a range or choices, such as "
        text += "--train.learning-rate 1e-5:1e-3:log or --train.num-train-epochs 2,3,4."
        return [Problem("RECIPE", text)]
    if flags.sampler != "grid":
        return []
    text = "has no single values for --sampler grid. Give it a step, as 0.1:0.5:0.1, or choices, "
    text += "as 1e-4,1e-3."
    return [
        Problem(each.path, f"the range {each.text} {text}")
        for each in parameters
        if each.grid is None
    ]


def unusable(recipe: Recipe) -> list[Problem]:
    """Return the fields of a recipe that a search has no use for."""
    text = "a search never replaces a study or a trial. Use another --output-dir."
    set_ = {"overwrite": recipe.overwrite, "allow_changed": bool(recipe.allow_changed)}
    return [Problem(name, text) for name, value in set_.items() if value]


def wrong_objectives(objectives: Collection[Objective]) -> list[Problem]:
    """Return a problem for trials that cannot be compared, since each has another metric."""
    if len(objectives) == 1:
        return []
    names = " and ".join(each.name for each in objectives)
    text = f"the trials have different ones, {names}. Name one with --metric, or search no option "
    return [Problem("metric", f"{text}that decides the metric.")]


def wrong_pruning(recipes: Sequence[Recipe], flags: SearchFlags) -> list[Problem]:
    """Return a problem for pruning trials that are evaluated at their end only."""
    if flags.prune is None or all(recipe.train.eval_steps for recipe in recipes):
        return []
    text = f"{flags.prune} compares the evaluations of a trial with those of others, and there is "
    return [Problem("prune", f"{text}only one at the end. Set --train.eval-steps.")]
