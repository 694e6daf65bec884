"""Checks of what a command was given, before seconds of imports."""

from __future__ import annotations

from pathlib import Path

from pipelines.recipe.recipe import Recipe
from pipelines.terminal import stop


def check_result(repo: str | Path) -> None:
    """Raise RecipeError for a folder with a damaged recipe.json, before seconds of imports."""
    file = Path(repo) / "recipe.json"
    if file.is_file():
        Recipe.from_file(file)


def column_names(text: str) -> list[str]:
    """Return the names in a list with commas. Stop for an empty name and for one given twice."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        stop([f"--keep: {text!r} is not a list of different columns, as id,text."], 2)
    return names


def at_least_one(flag: str, value: int) -> None:
    """Stop, naming the flag, for a number below 1."""
    if value < 1:
        stop([f"--{flag}: {value} is out of range; it must be at least 1."], 2)
