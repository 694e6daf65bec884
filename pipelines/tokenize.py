"""`gpt2-recipes tokenize`: prepare the rows of a recipe before its run. Imports no torch here."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe_cli import parse, print_help
from pipelines.shipped import find_file
from pipelines.train import load_recipe


def tokenize(recipe: str, flags: Sequence[str]) -> None:
    """Prepare the rows of a recipe with its flags, and print what was written.

    Raise RecipeError or DataError for whatever the run would stop at.
    """
    file = find_file(recipe, "recipes", field="RECIPE")
    if {"-h", "--help"} & set(flags):
        print_help(load_recipe(file), f"gpt2-recipes tokenize {recipe}")
        return
    chosen = parse(load_recipe(file), [str(file), *flags])
    if chosen.task.dataset.streaming:
        text = "a stream is tokenised while it is read. Use --task.dataset.no-streaming to prepare "
        raise RecipeError([Problem("task.dataset.streaming", f"{text}its rows.")])
    prepare(chosen)


def prepare(recipe: Recipe) -> None:
    """Read, check, split and encode the rows of a recipe, or find that this was done before."""
    from pipelines.collector import collector_without_imports
    from pipelines.console import say
    from pipelines.hub.pin import pin_revisions
    from pipelines.inputs import encode, read_rows
    from pipelines.preparing.splits import check_prepared
    from pipelines.preparing.store import Store
    from pipelines.process import prepare_process, returning_freed_memory
    from pipelines.reporting.progress import RunProgress
    from pipelines.reporting.report import describe_split

    started = time.perf_counter()
    with (
        prepare_process(),
        collector_without_imports(),
        returning_freed_memory(),
        RunProgress() as progress,
    ):
        store = Store(progress, always=True)
        recipe, raw = read_rows(pin_revisions(recipe), store)
        splits, labels = check_prepared(recipe.task, raw, None, store)
        encoded = encode(recipe, splits, labels, store)
    for name, rows in ({"train": splits.train} | splits.scored).items():
        say(describe_split(recipe.task, name, rows, encoded.features[name]))
    for warning in encoded.warnings:
        say(f"  {warning}", style="yellow")
    for line in store.describe(time.perf_counter() - started):
        say(line)
