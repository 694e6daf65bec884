"""What a run says on the terminal, once, from rank 0."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from rich.console import Console

from pipelines.recipe import Recipe
from pipelines.tasks.base import Features


def console() -> Console:
    """Return a console that is silent on all ranks but the first."""
    return Console(quiet=not PartialState().is_main_process, soft_wrap=True, highlight=False)


def print_report(recipe: Recipe, world_size: int, train: Features, held_out: Features) -> None:
    """Say what runs where, and what reading the rows cost: rows cut, tokens left out."""
    state = PartialState()
    out = console()
    out.print(f"{recipe.name}: {world_size} process(es) on {state.device.type}", markup=False)
    for name, features in (("train", train), ("eval", held_out)):
        parts = [f"{value:,} {key.replace('_', ' ')}" for key, value in features.report.items()]
        out.print(f"  {name}: {', '.join(parts) or 'streamed'}", markup=False)


def print_score(name: str, metrics: dict[str, Any]) -> None:
    """Say the primary metric with its interval, rows and baseline."""
    primary = metrics["primary"]
    low, high = metrics["confidence_interval"]
    line = f"{name}: {primary} {metrics[primary]:.4f} (95 % {low:.4f} to {high:.4f}), "
    line += f"{metrics['rows']:,} rows"
    for baseline, value in metrics.get("baseline", {}).items():
        line += f"; {baseline} {value:.4f}"
    console().print(line, markup=False)
