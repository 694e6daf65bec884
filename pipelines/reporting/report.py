"""The report of a run before its first step, and its score at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accelerate import PartialState

from pipelines.console import console
from pipelines.data.rows import Examples
from pipelines.data.splits import Splits
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.labels import NUM_NAMED, count_labels, printable
from pipelines.tasks.base import Features, Task


def print_report(
    recipe: Recipe,
    world_size: int,
    splits: Splits,
    train: Features,
    held_out: Features,
    cautions: Iterable[str],
) -> None:
    """Print what runs where, the rows and labels of each split, and what encoding them cost."""
    state = PartialState()
    out = console()
    out.print(f"{recipe.name}: {world_size} process(es) on {state.device.type}", markup=False)
    out.print(split_line(recipe.task, "train", splits.train, train), markup=False)
    out.print(split_line(recipe.task, "eval", splits.held_out, held_out), markup=False)
    for text in cautions:
        out.print(f"  {text}", style="yellow", markup=False)


def split_line(task: Task, name: str, examples: Examples, features: Features) -> str:
    """Return the rows of a split, of how many, what encoding them cost, and their labels."""
    parts = [f"{value:,} {key.replace('_', ' ')}" for key, value in features.report.items()]
    if examples.streamed:
        most = task.dataset.max_train_rows
        parts = ["streamed" if most is None else f"streamed, the first {most:,} rows"]
    elif examples.total is not None:
        num_rows = len(list(examples.rows))
        parts[0] = f"{num_rows:,} of {examples.total:,} rows (max_{name}_rows)"
    elif name == "eval" and task.dataset.streaming:
        parts.append("the first of the stream")
    line = f"  {name}: {', '.join(parts)}"
    counts = count_labels(task, examples).most_common()
    if counts:
        shown = [f"{printable(label)} {count:,}" for label, count in counts[:NUM_NAMED]]
        more = [f"and {len(counts) - NUM_NAMED} more"] if len(counts) > NUM_NAMED else []
        line += f"; labels: {', '.join(shown + more)}"
    return line


def print_score(name: str, metrics: dict[str, Any]) -> None:
    """Say the primary metric with its interval, rows and baseline."""
    primary = metrics["primary"]
    low, high = metrics["confidence_interval"]
    line = f"{name}: {primary} {metrics[primary]:.4f} (95 % {low:.4f} to {high:.4f}), "
    line += f"{metrics['rows']:,} rows"
    if "rows_skipped" in metrics:
        line += f" without {metrics['rows_skipped']:,} that cannot be used"
    for baseline, value in metrics.get("baseline", {}).items():
        line += f"; {baseline} {value:.4f}"
    console().print(line, markup=False)
