"""Files that come with the package: recipes, Accelerate configs and the tested versions.

A wheel has them in this folder. A checkout has them at its top, where they are easy to see.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import Problem, RecipeError
from pipelines.paths import nearest_path

SUFFIXES = {"recipes": ".py", "accelerate_configs": ".yaml"}
RECIPE_FILE = "recipe.json"
"""File in the folder of a finished run that has its recipe."""


def shipped_files(kind: str) -> dict[str, Path]:
    """Return the shipped `recipes` or `accelerate_configs` by their names."""
    folder = Path(__file__).parent / kind
    if not folder.is_dir():
        folder = Path(__file__).parents[2] / kind
    return {file.stem: file for file in sorted(folder.glob(f"*{SUFFIXES[kind]}"))}


def constraints() -> dict[str, str]:
    """Return the versions that the project is tested with, by the names of the packages."""
    file = Path(__file__).parent / "constraints.txt"
    if not file.is_file():
        file = Path(__file__).parents[2] / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def find_file(name: str | Path, kind: str, *, field: str) -> Path:
    """Return the file with a path, the recipe.json of a run's folder, or a shipped file.

    In the names of shipped files `-` and `_` are the same. Raise RecipeError, which names the
    `field`, for anything else.
    """
    path = Path(name)
    if path.is_file():
        return path
    if kind == "recipes" and (path / RECIPE_FILE).is_file():
        return path / RECIPE_FILE
    shipped = shipped_files(kind)
    stem = str(name).replace("-", "_").removesuffix(SUFFIXES[kind])
    if stem in shipped:
        return shipped[stem]
    what = {"recipes": "recipe", "accelerate_configs": "Accelerate config"}[kind]
    text = f"{str(name)!r} is no file and no shipped {what}. {nearest(path, stem, shipped)}"
    if path.is_dir():
        text = f"{str(name)!r} is a folder without a {RECIPE_FILE}: no run has finished there."
    raise RecipeError([Problem(field, text)])


def nearest(path: Path, stem: str, shipped: Mapping[str, Path]) -> str:
    """Return a hint with the nearest file, or the nearest shipped name."""
    close = difflib.get_close_matches(stem, shipped, n=1)
    file = nearest_path(path)
    is_path = len(path.parts) > 1 or path.suffix in SUFFIXES.values()
    if file is not None and file != path and (is_path or not close):
        return f"Did you mean {file}?"
    return f"Did you mean {close[0]}?" if close else f"Shipped: {', '.join(shipped)}."
