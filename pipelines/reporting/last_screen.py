"""The end of a run: where its result is, and what can be done with it. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.console import say
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.reporting.progress import duration

REPORT = "report.html"


def print_last_screen(recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Print the folder of a result, its report, and the commands that use it."""
    folder = recipe.folder
    took = f" ({duration(metrics['seconds'])})" if "seconds" in metrics else ""
    commands = list(next_commands(recipe))
    fields = {"event": "finished", "folder": str(folder), "metrics": metrics, "next": commands}
    say(f"  result: {folder}{took}", fields)
    report = folder / REPORT
    if report.is_file():
        say(f"  report: {report}", {"event": "report", "file": str(report)})
    for command in commands:
        say(f"    {command}", {"event": "next"})


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
