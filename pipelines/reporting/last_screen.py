"""The end of a run: where its result is, and what can be done with it."""

from __future__ import annotations

from typing import Any

from pipelines.console import say
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.commands import next_commands
from pipelines.reporting.run_files import REPORT
from pipelines.reporting.units import duration


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
