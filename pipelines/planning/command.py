"""`gpt2-recipes plan`: print the plan of a recipe's run. Imports no torch at the top."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipelines.recipe_cli import PlanFlags, parse, print_help
from pipelines.shipped import find_file
from pipelines.train import Launcher, load_recipe, validated


def plan(recipe: str, flags: Sequence[str], options: PlanFlags) -> None:
    """Print the plan of a recipe with its flags, and of the Accelerate config that is to run it.

    Raise RecipeError or DataError for whatever the run would stop at.
    """
    file = find_file(recipe, "recipes", field="RECIPE")
    launcher = Launcher.of(options)
    if {"-h", "--help"} & set(flags):
        print_help(load_recipe(file), f"gpt2-recipes plan {recipe}", PlanFlags)
        return
    chosen = parse(load_recipe(file), [str(file), *flags])
    num_processes = None
    if launcher.needed:
        num_processes = validated([*launcher.words, "program"]).num_processes
    else:
        launcher.set_environment()
    from rich.console import Console

    from pipelines.planning.plan import make_plan
    from pipelines.planning.show import WIDTH, show

    found = make_plan(chosen, num_processes)
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
        return
    out = Console(highlight=False)
    out.width = max(WIDTH, out.width)
    show(found, out)
