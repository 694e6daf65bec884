"""Verbs about recipes: parse, call, nothing else."""

from __future__ import annotations

from typing import Annotated

import tyro

from pipelines.cli.training import check_recipe
from pipelines.scaffold.flags import NewFlags

NO_NEW_FLAGS = NewFlags()


def new(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    /,
    *,
    flags: Annotated[NewFlags, tyro.conf.arg(name="")] = NO_NEW_FLAGS,
) -> None:
    """Write a recipe for data of your own, and say what was guessed.

    It looks at the rows, guesses what is not given, and prints each guess with its reason and the
    flag that overrules it. Where two columns fit, it asks for the flag.

    Args:
        name: Name of the run, and of the file.
    """
    from pipelines.scaffold.new import new as write_recipe

    write_recipe(name, flags)


def list_recipes(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """List the shipped recipes, what each needs, and what it scored.

    The score is that of the run in runs/ here, or else the one that docs/scores.md records.

    Args:
        as_json: Print JSON in place of the table.
    """
    from pipelines.recipe_list import print_list

    print_list(as_json=as_json)


def show(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Print every field of a recipe, and mark what is no default.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, the folder of a run, or a shipped name.
        flags: Flags of the recipe: `gpt2-recipes show RECIPE --help` lists them.
        as_json: Print the form of recipe.json.
    """
    from pipelines.recipe_show import show as show_recipe

    show_recipe(recipe, flags, as_json=as_json)


def show_words(words: list[str]) -> None:
    """Call `show` with the words after it."""
    others = [word for word in words if word != "--json"]
    check_recipe("show", others)
    show(*others, as_json="--json" in words)
