"""Files that come with the package: recipes and Accelerate configs.

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
