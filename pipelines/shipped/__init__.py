"""Files that come with the package: recipes, Accelerate configs and the tested versions.

A wheel has them in this folder. A checkout has them at its top, where they are easy to see.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from pipelines.errors import Problem, RecipeError

SUFFIXES = {"recipes": ".py", "accelerate_configs": ".yaml"}


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
    """Return the file with a path, or the shipped one with a name.

    In names `-` and `_` are the same. Raise RecipeError, which names the `field`, for neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_files(kind)
    stem = str(name).replace("-", "_").removesuffix(SUFFIXES[kind])
    if stem in shipped:
        return shipped[stem]
    close = difflib.get_close_matches(stem, shipped, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Shipped: {', '.join(shipped)}."
    what = {"recipes": "recipe", "accelerate_configs": "Accelerate config"}[kind]
    raise RecipeError([Problem(field, f"{str(name)!r} is no file and no shipped {what}. {hint}")])
