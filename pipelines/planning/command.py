"""`gpt2-recipes plan`: print the plan of a recipe's run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.recipe_cli import parse, print_help
from pipelines.shipped import find_file
from pipelines.train import Launcher, load_recipe

NO_CONFIG = Launcher(None, None, {})


@dataclass(frozen=True, kw_only=True)
class PlanFlags:
    """Flags of `gpt2-recipes plan`, which come before or after those of the recipe."""

    json: bool = False
    """Print the plan as JSON, with bytes and seconds."""


def plan(recipe: str, words: Sequence[str]) -> None:
    """Print the plan of a recipe with the flags among `words`.

    Raise RecipeError or DataError for whatever the run would stop at.
    """
    as_json = "--json" in words
    flags = [word for word in words if word not in ("--json", "--no-json")]
    file = find_file(recipe, "recipes", field="RECIPE")
    if {"-h", "--help"} & set(flags):
        print_help(load_recipe(file), f"gpt2-recipes plan {recipe}", PlanFlags)
    chosen = parse(load_recipe(file), [f"gpt2-recipes plan {recipe}", *flags])
    from rich.console import Console

    from pipelines.planning.plan import make_plan
    from pipelines.planning.show import WIDTH, show

    found = make_plan(chosen)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        out = Console(highlight=False)
        out.width = max(WIDTH, out.width)
        show(found, out)
