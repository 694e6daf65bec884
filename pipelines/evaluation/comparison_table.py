"""A comparison of results as a table, and as JSON. Imports no torch."""

from __future__ import annotations

import json
from string import ascii_uppercase
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.evaluation.compare import NUM_RESAMPLES, ComparedResult, Comparison
from pipelines.hub.escaping import one_line
from pipelines.metrics.bootstrap import Difference

P_VALUE = "p: twice the smaller fraction of resamples whose difference is at most 0, or at least 0."


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison in the width of the terminal, 80 columns where there is none."""
    console = Console(highlight=False, markup=False, emoji=False)
    names = [letter(number) for number in range(len(comparison.results))]
    for name, result in zip(names, comparison.results, strict=True):
        console.print(f"{name}  {one_line(result.name)}{seeds_of(result)}")
    console.print()
    console.print(fields_table(comparison, names))
    console.print()
    console.print(results_table(comparison, names))
    if comparison.other_rows:
        console.print("\nThe scores are NOT comparable:")
        for problem in comparison.other_rows:
            console.print(f"  {one_line(problem.path)}: {one_line(problem.message)}")
        return
    console.print()
    if any(isinstance(test, Difference) for test in comparison.tests):
        console.print(tests_table(comparison, names))
        console.print(P_VALUE)
    for name, test in zip(names[1:], comparison.tests, strict=True):
        if isinstance(test, str):
            console.print(f"{name}: no test, since {one_line(test)}.")


def new_table() -> Table:
    """Return a table without lines, whose cells are folded where they are too wide."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def fields_table(comparison: Comparison, names: list[str]) -> Table:
    """Return the fields that differ, each with its values and the results that have them."""
    table = new_table()
    table.add_column("differs", overflow="fold")
    table.add_column("value (results)", overflow="fold")
    for field, values in comparison.fields.items():
        having: dict[str, list[str]] = {}
        for name, value in zip(names, values, strict=True):
            having.setdefault(as_text(value), []).append(name)
        shown = [f"{value} ({', '.join(each)})" for value, each in having.items()]
        table.add_row(one_line(field), ", ".join(shown))
    if not comparison.fields:
        table.add_row("nothing", "")
    return table


def results_table(comparison: Comparison, names: list[str]) -> Table:
    """Return what came out, a result a row."""
    metrics = {result.metrics["primary"] for result in comparison.results}
    same = len(metrics) == 1
    table = new_table()
    table.add_column("")
    table.add_column(one_line(min(metrics)) if same else "score")
    for title in ("95 % interval", "loss", "rows", "seconds", "weights"):
        table.add_column(title, justify="right")
    for name, result in zip(names, comparison.results, strict=True):
        low, high = result.metrics["confidence_interval"]
        score = f"{result.score:.4f}"
        if not same:
            score += f" {one_line(result.metrics['primary'])}"
        table.add_row(
            name,
            score,
            f"{low:.4f} to {high:.4f}",
            number(result.metrics.get("loss"), ".4f"),
            number(result.metrics["rows"], ","),
            number(result.metrics.get("seconds"), ",.0f"),
            number(result.weights_size, ",", per=1e6),
        )
    return table


def tests_table(comparison: Comparison, names: list[str]) -> Table:
    """Return the differences to the baseline."""
    table = new_table()
    table.add_column("")
    table.add_column(f"minus {names[0]}", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("p", justify="right")
    table.add_column(f"{NUM_RESAMPLES:,} paired resamples of the rows")
    for name, test in zip(names[1:], comparison.tests, strict=True):
        if isinstance(test, Difference):
            low, high = test.interval
            verdict = "no clear difference"
            if not low <= 0 <= high:
                verdict = "better" if (low > 0) == comparison.greater_is_better else "worse"
            interval = f"{low:+.4f} to {high:+.4f}"
            table.add_row(name, f"{test.value:+.4f}", interval, f"{test.p_value:.4f}", verdict)
    return table


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON-like values."""
    return {
        "results": [
            {
                "name": result.name,
                "metric": result.metrics["primary"],
                "score": result.score,
                "confidence_interval": result.metrics["confidence_interval"],
                "loss": result.metrics.get("loss"),
                "rows": result.metrics["rows"],
                "seconds": result.metrics.get("seconds"),
                "weights_bytes": result.weights_size,
                "seeds": result.sidecar.get("seeds"),
            }
            for result in comparison.results
        ],
        "differing_fields": comparison.fields,
        "comparable": not comparison.other_rows,
        "not_comparable_because": [
            f"{problem.path}: {problem.message}" for problem in comparison.other_rows
        ],
        "greater_is_better": None if comparison.other_rows else comparison.greater_is_better,
        "tests": [difference_as_json(test) for test in comparison.tests],
    }


def difference_as_json(test: Difference | str) -> dict[str, Any]:
    """Return the test of a result against the baseline, or why there is none."""
    if isinstance(test, str):
        return {"none_because": test}
    return {
        "difference": test.value,
        "confidence_interval": list(test.interval),
        "p_value": test.p_value,
        "num_resamples": NUM_RESAMPLES,
    }


def letter(number: int) -> str:
    """Return A, B, ..., Z, A1, B1, ... for 0, 1, ..."""
    rounds, place = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(rounds) if rounds else "")


def seeds_of(result: ComparedResult) -> str:
    """Return the mean of the seeds that a result is one of, or ""."""
    seeds = result.sidecar.get("seeds")
    if not seeds:
        return ""
    mean, deviation = seeds["mean"], seeds["standard_deviation"]
    return f"  (one of {len(seeds['values'])} seeds: mean {mean:.4f}, deviation {deviation:.4f})"


def number(value: float | None, form: str, *, per: float | None = None) -> str:
    """Return a number, "" for none; with `per`, in that unit of bytes."""
    if value is None:
        return ""
    return format(value, form) if per is None else f"{value / per:,.1f} MB"


def as_text(value: Any) -> str:
    """Return a value of a recipe as one line: a plain text as it is, anything else as JSON."""
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value)
