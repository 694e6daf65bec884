"""The commands that use the result of a run. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model


def next_commands(recipe: Recipe) -> Iterator[str]:
    """Yield the commands that evaluate, use, merge and publish the result of a run."""
    folder = str(recipe.folder)

    def line(*words: str) -> str:
        return shlex.join(["gpt2-recipes", *words])

    yield line("evaluate", folder)
    if recipe.task.learns_tokens:
        yield line("generate", folder, "TEXT")
    else:
        yield line("predict", folder, "FILE.csv")
    if recipe.lora is not None:
        yield line("merge", folder, f"{folder}-merged")
    if recipe.push_to is None:
        yield line("publish", folder, "USER/NAME", *base_options(recipe))
    else:
        yield line("evaluate", recipe.push_to)


def base_options(recipe: Recipe) -> list[str]:
    """Return the options that publish the base of an adapter too, where it is on this machine."""
    if recipe.lora is None or not isinstance(recipe.model, Model):
        return []
    return ["--with-base", "USER/BASE"] if Path(recipe.model.name_or_path).is_dir() else []
