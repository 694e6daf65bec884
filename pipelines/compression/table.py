"""The table of what a compression costs and wins."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from pipelines.compression.measure import Measured
from pipelines.console import console


def print_table(found: Mapping[str, Measured]) -> None:
    """Print a row for each state of the model, and one of their ratios."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    first, *_, last = found.values()
    columns = ("", "weights", "peak memory", first.unit, first.metric, "95 % interval")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for name, each in found.items():
        low, high = each.interval
        table.add_row(
            name,
            f"{each.size_mb:,.1f} MB",
            f"{each.memory_mb:,.0f} MB",
            f"{each.speed:,.0f}",
            f"{each.score:.4f}",
            f"{low:.4f} to {high:.4f}",
        )
    table.add_row(
        "after / before",
        f"{last.size_mb / first.size_mb:.2f}",
        f"{last.memory_mb / first.memory_mb:.2f}",
        f"{last.speed / first.speed:.2f}",
        f"{last.score - first.score:+.4f}",
        "",
    )
    console().print(table)
