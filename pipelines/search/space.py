"""The space of a search: which words of a command line are parameters, and whether all may be.

Imports neither torch nor Optuna.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import suggest, union_members
from pipelines.search.parameters import Parameter, Value, choices_of, range_of

Section = TypeVar("Section")
MAX_CORNERS = 1000
"""Recipes at the bounds of the space that are checked; of more, as many are drawn by seed."""
SCALARS = (bool, int, float, str, type(None))
NOT_SEARCHED = {
    "name": "names the run",
    "output_dir": "names the folder of the search",
    "push_to": "is where a result is published",
    "public": "is about a published result",
    "license": "is about a published result",
    "overwrite": "is about a result that exists",
    "allow_changed": "is about a run that resumes",
    "task.dataset": "decides which rows are scored, and scores of other rows cannot be compared",
    "train.report_to": "names the trackers of every trial",
    "train.metric_for_best": "is the metric that trials are compared by",
}
"""Fields, and sections, that have one value in a search, and why."""
SEARCHED_ANYWAY = ("task.dataset.max_train_rows",)


def split_words(recipe: Recipe, words: Sequence[str]) -> tuple[tuple[Parameter, ...], list[str]]:
    """Split a recipe's flags into the parameters to search and plain values, as flags.

    Raise RecipeError with every wrong range, choice and name.
    """
    parameters: list[Parameter] = []
    plain: list[str] = []
    problems: list[Problem] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or (not equals and not rest):
            plain.append(word)
            continue
        path = flag.removeprefix("--").replace("-", "_")
        text = value if equals else rest[0]
        try:
            parameter = parameter_of(recipe, path, text)
        except ValueError as error:
            problems.append(Problem(path, str(error)))
            parameter = None
        else:
            if parameter is None:
                plain.append(word)
                continue
        if not equals:
            rest.pop(0)
        if parameter is not None:
            parameters.append(parameter)
    problems += given_twice(parameters, plain)
    if problems:
        raise RecipeError(problems)
    return tuple(parameters), plain


def parameter_of(recipe: Recipe, path: str, text: str) -> Parameter | None:
    """Return the parameter that a flag and its value give, or None for a plain value.

    Raise ValueError, with the reason, for a range or choice that cannot be searched.
    """
    if text.startswith("--"):
        return None
    hint = hint_of(recipe, path)
    if hint is None:
        if "," in text or ":" in text:
            raise ValueError(unknown(recipe, path))
        return None  # tyro tells what is wrong
    kinds = union_members(hint)
    is_number = bool({int, float} & set(kinds))
    if "," not in text and not (is_number and ":" in text):
        return None
    reason = why_not_searched(path)
    if reason is not None:
        raise ValueError(f"{text!r}: it cannot be searched, since it {reason}. Give one value.")
    if not all(kind in SCALARS or typing.get_origin(kind) is typing.Literal for kind in kinds):
        raise ValueError(f"{text!r}: a list of values cannot be searched. Give one value.")
    return choices_of(path, text, kinds) if "," in text else range_of(path, text, kinds)


def why_not_searched(path: str) -> str | None:
    """Return why a field has one value in a search, or None if it may have several."""
    if path in SEARCHED_ANYWAY:
        return None
    return next(
        (why for name, why in NOT_SEARCHED.items() if path == name or path.startswith(f"{name}.")),
        None,
    )


def given_twice(parameters: Sequence[Parameter], plain: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each parameter that is given again, as a range or as a plain value."""
    paths = [parameter.path for parameter in parameters]
    flags = [word.partition("=")[0].removeprefix("--").replace("-", "_") for word in plain]
    for path in dict.fromkeys(paths):
        if paths.count(path) > 1 or path in flags:
            yield Problem(path, "is given more than once.")


def hint_of(section: Any, path: str) -> Any:
    """Return the type of a field below a section of a recipe, or None if it has none there."""
    name, _, below = path.partition(".")
    fields = {each.name for each in dataclasses.fields(section)}
    if name not in fields:
        return None
    value = getattr(section, name)
    if below:
        return hint_of(value, below) if dataclasses.is_dataclass(value) else None
    if dataclasses.is_dataclass(value):
        return None
    return typing.get_type_hints(type(section), include_extras=True)[name]


def unknown(recipe: Recipe, path: str) -> str:
    """Return what is wrong with the name of a parameter that the recipe does not have."""
    section, _, _ = path.partition(".")
    if section != path and getattr(recipe, section, "") is None:
        return f"the recipe has no {section} to search. Give it a {section} in its file."
    return f"is not a parameter of the recipe; {suggest(path, list(paths_of(recipe)))}"


def paths_of(section: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the fields that may be searched."""
    for each in dataclasses.fields(section):
        value, below = getattr(section, each.name), f"{path}.{each.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            yield from paths_of(value, below)
        elif why_not_searched(below) is None:
            yield below


def with_values(section: Section, values: Mapping[str, Value]) -> Section:
    """Return a recipe, or a section of it, with other values at the given paths.

    Raise RecipeError for values, and combinations, that the recipe does not allow.
    """
    changes: dict[str, Any] = {}
    below: dict[str, dict[str, Value]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    changes |= {name: with_values(getattr(section, name), inner) for name, inner in below.items()}
    return dataclasses.replace(section, **changes)  # type: ignore[type-var]


def values_at(section: Any, parameters: Sequence[Parameter]) -> dict[str, Value]:
    """Return the values that a recipe has for the parameters."""
    values = {}
    for parameter in parameters:
        value = section
        for name in parameter.path.split("."):
            value = getattr(value, name)
        values[parameter.path] = value
    return values


def corners(parameters: Sequence[Parameter]) -> Iterator[dict[str, Value]]:
    """Yield every combination of bounds and choices, or `MAX_CORNERS` of them drawn by seed."""
    paths = [parameter.path for parameter in parameters]
    bounds = [parameter.bounds for parameter in parameters]
    count = math.prod(len(each) for each in bounds)
    if count <= MAX_CORNERS:
        for values in itertools.product(*bounds):
            yield dict(zip(paths, values, strict=True))
        return
    draw = random.Random(0)
    for index in range(MAX_CORNERS):  # each bound and choice is in one of them
        yield {
            path: each[index] if index < len(each) else draw.choice(each)
            for path, each in zip(paths, bounds, strict=True)
        }


def corner_recipes(recipe: Recipe, parameters: Sequence[Parameter]) -> list[Recipe]:
    """Return the recipes at the bounds of the space.

    Raise RecipeError with every value, and every combination, that the recipe does not allow.
    """
    recipes: list[Recipe] = []
    problems: dict[Problem, None] = {}
    for values in corners(parameters):
        try:
            recipes.append(with_values(recipe, values))
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise RecipeError(list(problems))
    return recipes
