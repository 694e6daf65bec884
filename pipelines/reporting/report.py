"""The report of a run before its first step, and its score at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accelerate import PartialState

from pipelines.console import console
from pipelines.data.rows import Examples
from pipelines.data.splits import Splits
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.labels import NUM_LABELS_SHOWN, count_labels, short_label
from pipelines.tasks.base import Features, Task


def print_report(
    recipe: Recipe,
    world_size: int,
    splits: Splits,
    features: Mapping[str, Features],
    cautions: Iterable[str],
) -> None:
    """Print name and device of a run, the rows and labels of each split, and the cautions.

    `features` are those of the training rows and of every split that is scored.
    """
    state = PartialState()
    out = console()
    out.print(f"{recipe.name}: {world_size} process(es) on {state.device.type}", markup=False)
    for name, rows in ({"train": splits.train} | splits.scored).items():
        out.print(describe_split(recipe.task, name, rows, features[name]), markup=False)
    if splits.test is not None and "test" not in splits.scored:
        out.print(f"  test: {splits.test.num_rows:,} rows, not scored", markup=False)
    for text in cautions:
        out.print(f"  {text}", style="yellow", markup=False)


def describe_split(task: Task, name: str, examples: Examples, features: Features) -> str:
    """Return one line about a split: its rows, tokens and labels, and what was cut."""
    parts = [f"{value:,} {key.replace('_', ' ')}" for key, value in features.report.items()]
    if examples.streamed:
        num_rows = task.dataset.max_train_rows
        parts = ["streamed" if num_rows is None else f"streamed, the first {num_rows:,} rows"]
    elif examples.total is not None:
        num_rows = examples.num_rows
        parts[0] = f"{num_rows:,} of {examples.total:,} rows (max_{name}_rows)"
    elif name != "train" and task.dataset.streaming:
        parts.append("the first of the stream")
    line = f"  {name}: {', '.join(parts)}"
    counts = count_labels(task, examples).most_common()
    if counts:
        shown = [f"{short_label(label)} {count:,}" for label, count in counts[:NUM_LABELS_SHOWN]]
        more = (
            [f"and {len(counts) - NUM_LABELS_SHOWN} more"] if len(counts) > NUM_LABELS_SHOWN else []
        )
        line += f"; labels: {', '.join(shown + more)}"
    return line


def print_score(name: str, metrics: dict[str, Any]) -> None:
    """Print the primary metric with its interval, rows and baseline."""
    primary = metrics["primary"]
    low, high = metrics["confidence_interval"]
    line = f"{name}: {primary} {metrics[primary]:.4f} (95 % {low:.4f} to {high:.4f}), "
    line += f"{metrics['rows']:,} rows"
    if "validation" in metrics:
        line += f" of the test split; validation {metrics['validation'][primary]:.4f}"
    if "rows_skipped" in metrics:
        line += f" without {metrics['rows_skipped']:,} that cannot be used"
    for baseline, value in metrics.get("baseline", {}).items():
        line += f"; {baseline} {value:.4f}"
    console().print(line, markup=False)
