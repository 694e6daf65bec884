"""`gpt2-recipes list`: the shipped recipes, what each needs, and what it scored."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.names import hub_ids, is_hub_id, method_name, model_name, task_name
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.results.files import read_manifest
from pipelines.shipped import shipped_files
from pipelines.train import load_recipe

LARGEST_ON_CPU = 256  # width of a model that trains in minutes on a CPU


@dataclass(frozen=True)
class Measured:
    """A score of a recipe; `source` is the folder of the run, or the page that records it."""

    metric: str
    score: float
    rows: int | None
    source: str


@dataclass(frozen=True)
class Listed:
    """What the list says about one recipe."""

    name: str
    task: str
    method: str
    model: str
    data: str
    needs: tuple[str, ...]
    measured: Measured | None


def print_list(*, as_json: bool) -> None:
    """Print the shipped recipes as a table, as plain lines to a pipe, or as JSON."""
    recorded = json.loads(scores_file().read_text(encoding="utf-8"))
    listed = [
        describe(name, load_recipe(file), recorded.get(name))
        for name, file in shipped_files("recipes").items()
    ]
    if as_json:
        print(json.dumps([asdict(each) for each in listed], indent=2))
    elif sys.stdout.isatty():
        print_table(listed)
    else:
        for each in listed:
            print("\t".join(cells(each)))


def scores_file() -> Path:
    """Return the file of the scores that docs/scores.md records."""
    return next(iter(shipped_files("recipes").values())).parent / "scores.json"


def describe(name: str, recipe: Recipe, recorded: dict[str, float] | None) -> Listed:
    """Return what the list says about a recipe, given its recorded score."""
    source = recipe.task.dataset
    return Listed(
        name=name,
        task=task_name(recipe),
        method=method_name(recipe),
        model=model_name(recipe),
        data=" ".join(filter(None, (source.path, source.name))),
        needs=tuple(needs(recipe)),
        measured=measured_here(recipe) or measured_before(recorded),
    )


def needs(recipe: Recipe) -> list[str]:
    """Return the files, the network and the device that a recipe needs."""
    model = recipe.model
    named = [recipe.task.dataset.path]
    named += [model.name_or_path] if isinstance(model, Model) else []
    files = [name for name in named if not is_hub_id(name)]
    if isinstance(model, Model):
        small = not is_hub_id(model.name_or_path)
    else:
        small = model.widths[2] <= LARGEST_ON_CPU
    return [*files, *(["network"] if hub_ids(recipe) else []), "CPU" if small else "GPU"]


def measured_here(recipe: Recipe) -> Measured | None:
    """Return the score of the finished run in the recipe's folder, if there is one.

    Raise RecipeError for a damaged one.
    """
    if not (recipe.folder / "task.json").is_file():
        return None
    try:
        metrics = read_manifest(recipe.folder)["metrics"]
    except ValueError as error:
        raise RecipeError([Problem(str(recipe.folder), f"{error}.")]) from None
    primary = metrics["primary"]
    return Measured(primary, metrics[primary], metrics["rows"], str(recipe.folder))


def measured_before(recorded: dict[str, float] | None) -> Measured | None:
    """Return a score that is recorded with the recipes."""
    if recorded is None:
        return None
    rows = recorded.get("rows")
    rows = None if rows is None else int(rows)
    return Measured(str(recorded["metric"]), recorded["score"], rows, "docs/scores.md")


def cells(each: Listed) -> list[str]:
    """Return the cells of a line."""
    score = "-" if each.measured is None else f"{each.measured.metric} {each.measured.score:.4g}"
    needed = ", ".join(each.needs)
    return [each.name, each.task, each.method, each.model, each.data, needed, score]


def print_table(listed: list[Listed]) -> None:
    """Print two lines a recipe, the first of a table that fits 80 columns."""
    from rich.console import Console

    rows = [("recipe", "trains", "method", "needs", "score"), *map(first_line, listed)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    console = Console(highlight=False, soft_wrap=True)
    console.print(lines[0], style="dim", markup=False)
    for line, each in zip(lines[1:], listed, strict=True):
        console.print(line, style="bold", markup=False)
        console.print(
            f"    {starred(each.model, each)} on {starred(each.data, each)}", markup=False
        )
    print("\n* is not in this folder yet: the docstring of the recipe says what makes it.")
    print("Copy one with `gpt2-recipes new NAME --from RECIPE`; run one with `gpt2-recipes run`.")


def first_line(each: Listed) -> tuple[str, ...]:
    """Return the cells of a recipe's first line; the second has the names of its files."""
    name, task, method, _, _, _, score = cells(each)
    needed = [word for word in each.needs if word in ("network", "CPU", "GPU")]
    return name, task, method, "+".join(needed), score


def starred(name: str, each: Listed) -> str:
    """Return the name of a model or of data, with a star if it is a local path without a file."""
    return f"{name}*" if name in each.needs and not Path(name).exists() else name
