"""The command line of a recipe: flags in, a run out."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from pipelines.recipe.recipe import Recipe
from pipelines.terminal import report_errors


def main(recipe: Recipe) -> None:
    """Run a recipe with the values of the command line in place of its own."""
    with report_errors():
        chosen = parse(recipe, sys.argv)
        from pipelines.flow import run

        run(chosen)


def parse(recipe: Recipe, command: list[str]) -> Recipe:
    """Return a recipe with the values of a command line, whose first word is the program."""
    return tyro.cli(
        Recipe,
        prog=Path(command[0]).name,
        args=command[1:],
        default=recipe,
        config=(tyro.conf.AvoidSubcommands,),
        description=recipe.name,
    )
