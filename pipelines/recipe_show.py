"""`gpt2-recipes show`: a recipe with its flags, every field of it."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.recipe.python_source import to_annotated_python
from pipelines.recipe_cli import parse, print_help
from pipelines.shipped import find_file
from pipelines.train import load_recipe


def show(recipe: str, flags: Sequence[str], *, as_json: bool) -> None:
    """Print a recipe with its flags, as Python or as recipe.json has it.

    Raise RecipeError for what is no recipe, and for wrong values.
    """
    file = find_file(recipe, "recipes", field="RECIPE")
    if {"-h", "--help"} & set(flags):
        print_help(load_recipe(file), f"gpt2-recipes show {recipe}")
    resolved = parse(load_recipe(file), [str(file), *flags])
    print(resolved.to_json() if as_json else to_annotated_python(resolved), end="")
    if not as_json:
        print()
