"""The parts of a report that are computed from the files of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.html_report.charts import (
    MAX_POINTS,
    BarChart,
    Chart,
    bar_chart,
    line_chart,
    scatter_chart,
    thinned,
)
from pipelines.html_report.files import ReportedRun
from pipelines.html_report.ranking import RankedRow, worst_and_best
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import is_section, to_json_value
from pipelines.reporting.commands import command_again, next_commands
from pipelines.tasks.base import RowResult, Task

MAX_LABELS = 12  # of a confusion matrix; those with fewest rows are added up
OTHERS = "all others"
MEMORY = "Peak memory (GB)"
SPLITS = {"train": "training", "eval": "validation", "test": "test"}
NUM_SHADES = 6  # of the cells of a confusion matrix
LENGTHS = ((0, 0), (1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, None))  # words


def curves(runs: Mapping[str, ReportedRun]) -> list[Chart]:
    """Return the curves of runs, by the names of their lines, from their metrics.jsonl.

    A single run has training and evaluation loss in one chart.
    """
    primary = next(iter(runs.values())).sidecar["metrics"]["primary"]
    charts = {
        "Training loss": "loss",
        "Evaluation loss": "eval_loss",
        f"{primary} (evaluation)": f"eval_{primary}",
        "Learning rate": "learning_rate",
        "Gradient norm": "grad_norm",
        "Tokens per second": "tokens_per_second",
        MEMORY: "memory_bytes",
    }
    lines = {
        title: {name: points_of(run.log, key) for name, run in runs.items()}
        for title, key in charts.items()
    }
    if len(runs) == 1:
        both = {kind: lines.pop(f"{kind} loss") for kind in ("Training", "Evaluation")}
        loss = {kind.lower(): points for kind, own in both.items() for points in own.values()}
        lines = {"Loss": loss} | lines
    drawn = (
        line_chart(title, each, log=title.startswith(primary)) for title, each in lines.items()
    )
    return [chart for chart in drawn if chart is not None]


def points_of(log: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of each line of a log that has a value."""
    unit = 1e9 if key == "memory_bytes" else 1.0
    found = ((line["step"], line.get(key)) for line in log)
    return [(float(step), value / unit) for step, value in found if value is not None]


def log_table(log: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of the log as a table."""
    known = ["step", "epoch", "seconds", "loss", "grad_norm", "learning_rate", "tokens_per_second"]
    others = sorted({name for line in log for name in line if name.startswith(("eval_", "test_"))})
    columns = [name for name in (*known, *others) if any(name in line for line in log)]
    return columns, [[line.get(name) for name in columns] for line in thinned(log, MAX_POINTS)]


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix; `shade` is 0 for no row, up to NUM_SHADES for a whole row."""

    count: int
    shade: int


def confusion_matrix(
    labels: Sequence[str], counts: Sequence[Sequence[int]]
) -> tuple[list[str], list[list[Cell]]]:
    """Return the names and the rows of a matrix of at most MAX_LABELS labels.

    Rows are references, columns predictions. The labels with the most rows stay.
    """
    names, matrix = list(labels), [list(row) for row in counts]
    if len(names) > MAX_LABELS:
        ranked = sorted(range(len(names)), key=lambda n: -sum(matrix[n]))
        kept, rest = sorted(ranked[: MAX_LABELS - 1]), ranked[MAX_LABELS - 1 :]
        groups = [*([n] for n in kept), rest]
        matrix = [[sum(matrix[i][j] for i in a for j in b) for b in groups] for a in groups]
        names = [*(names[n] for n in kept), OTHERS]
    return names, [
        [Cell(count, math.ceil(NUM_SHADES * count / max(1, sum(row)))) for count in row]
        for row in matrix
    ]


def label_table(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows, precision, recall and F1 of each label, those with most rows first; or []."""
    names = {"rows": "support", "precision": "precision", "recall": "recall", "F1": "f1"}
    columns = {title: metrics.get(f"{name}_per_class", {}) for title, name in names.items()}
    labels = sorted(columns["rows"], key=lambda label: -columns["rows"][label])
    return [
        {"label": label} | {title: values[label] for title, values in columns.items()}
        for label in labels
    ]


def result_chart(run: ReportedRun) -> Chart | BarChart | None:
    """Return the picture of the results of all rows that the task asks for, if it is a chart."""
    kind = run.task.chart
    if kind == "scatter" and run.rows:
        points = [(r.reference, r.prediction["value"], r.row) for r in run.rows]
        return scatter_chart("Predictions over targets", points)
    if kind == "lengths" and run.rows:
        return lengths_chart(run.task, run.rows)
    return None


def lengths_chart(task: Task, rows: Sequence[RowResult]) -> BarChart:
    """Return how many texts of the model, and of the references, have how many words."""
    shown = [task.shown(result) for result in rows]
    texts = {
        "model": [each.prediction for each in shown],
        "reference": [each.reference or "" for each in shown],
    }
    words = {name: [len(text.split()) for text in each] for name, each in texts.items()}
    bins = [
        (low, high)
        for low, high in LENGTHS
        if any(low <= n <= (n if high is None else high) for each in words.values() for n in each)
    ]
    counts = {
        name: [sum(low <= n <= (n if high is None else high) for n in each) for low, high in bins]
        for name, each in words.items()
    }
    groups = [
        f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}"
        for low, high in bins
    ]
    means = {name: sum(each) / len(each) for name, each in words.items()}
    summary = f"Words of {len(shown):,} texts: the model's have {means['model']:.1f} on average, "
    summary += f"the references {means['reference']:.1f}."
    return bar_chart(
        "Lengths of the model's texts and of the references",
        "words",
        groups,
        counts,
        summary=summary,
    )


def length_charts(statistics: dict[str, Any]) -> dict[str, BarChart]:
    """Return the histogram of tokens of each split whose rows differ in length, by its name."""
    charts = {}
    for name, split in statistics["splits"].items():
        lengths = split.get("lengths")
        if lengths is None or sum(map(bool, lengths["counts"])) < 2:
            continue
        width, limit = lengths["width"], lengths["limit"]
        last = max(n for n, count in enumerate(lengths["counts"]) if count)
        counts = lengths["counts"][: last + 1]
        summary = f"Half of the rows have at most {lengths['median']:,} tokens, 95 % at most "
        summary += f"{lengths['p95']:,}; the longest has {lengths['longest']:,}."
        mark = None
        if limit is not None and limit + 1 <= width * len(counts):
            mark = ((limit + 1) / width, f"cut at {limit:,}")
        groups = [f"{n * width:,}" for n in range(len(counts))]
        charts[name] = bar_chart(
            f"{SPLITS[name]} rows",
            "tokens of a row",
            groups,
            {"rows": counts},
            summary=summary,
            mark=mark,
        )
    return charts


@dataclass(frozen=True)
class TextRow:
    """A row in the report: its location, text (if known), and what the model said."""

    row: str
    input: str | None
    output: str
    detail: str
    reference: str | None


def ranked_rows(run: ReportedRun) -> dict[str, list[TextRow]]:
    """Return the worst and the best rows by the title of their list; {} without predictions."""
    if not run.rows:
        return {}
    inputs = {each["row"]: each["input"] for each in run.samples if each["when"] == "at the end"}

    def text_row(each: RankedRow) -> TextRow:
        shown = each.shown
        text = inputs.get(each.row)
        return TextRow(each.row, text, shown.prediction, shown.detail, shown.reference)

    worst, best = worst_and_best(run.task, run.rows)
    return {"Worst rows": list(map(text_row, worst)), "Best rows": list(map(text_row, best))}


def sample_pairs(run: ReportedRun) -> list[dict[str, Any]]:
    """Return each sampled row with what the model said before and after training, or None."""
    pairs: dict[str, dict[str, Any]] = {}
    for line in run.samples:
        if line["when"] in ("before", "after"):
            pair = {"before": None, "after": None} | line
            pairs.setdefault(line["row"], pair)[line["when"]] = line
    return list(pairs.values())


def commands(run: ReportedRun) -> dict[str, str]:
    """Return the commands that reproduce and use a result, by what they do."""
    recipe = replace(run.recipe, output_dir=run.name)
    return {"reproduce": command_again(run.name, run.sidecar)} | {
        command.split()[1]: command for command in next_commands(recipe)
    }


@dataclass(frozen=True)
class Field:
    """A field of a recipe by its path, and whether its value is not the default."""

    path: str
    value: Any
    differs: bool


def recipe_fields(recipe: Recipe) -> list[Field]:
    """Return the fields of a recipe, those that differ from their defaults first."""
    return sorted(fields_of(recipe, ""), key=lambda field: not field.differs)


def fields_of(section: Any, path: str) -> Iterator[Field]:
    """Yield the fields of a section and of the sections in it."""
    for each in dataclasses.fields(section):
        value, below = getattr(section, each.name), f"{path}{each.name}"
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        if is_section(type(value)):
            if type(value) is not type(default):
                yield Field(below, type(value).__name__, differs=True)
            yield from fields_of(value, f"{below}.")
        else:
            yield Field(below, to_json_value(value), differs=value != default)


def timing(run: ReportedRun) -> list[tuple[str, float, float]]:
    """Return name, seconds and fraction of each phase of a run; [] where none is recorded."""
    phases = run.sidecar.get("timing", {})
    total = sum(phases.values())
    return [(name, seconds, seconds / total) for name, seconds in phases.items() if total]
