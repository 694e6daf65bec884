"""Write the report of a run, or of several that are compared, as one HTML file.

The file loads nothing. Its policy allows its own style sheet by the hash, and no script: a text
of a row that got past the escaping could still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.data.splits import describe_part
from pipelines.evaluation.compare import NUM_RESAMPLES, compare
from pipelines.evaluation.comparison_table import letter, seeds_of
from pipelines.html_report import sections
from pipelines.html_report.escaping import breakable, cut, number, score, visible
from pipelines.html_report.files import ReportedRun, read_run
from pipelines.metrics.bootstrap import Difference
from pipelines.reporting.run_files import METRICS, REPORT, SAMPLES, STATISTICS
from pipelines.reporting.units import duration
from pipelines.results.files import PREDICTIONS

COMPARISON = "comparison.html"


def write_report(folder: Path | str, out: Path | None = None) -> Path:
    """Write the report of a finished run to its folder, or to `out`; return the file.

    Raise RecipeError for a folder without a finished run and for damaged files, OSError for a file
    that cannot be written.
    """
    run = read_run(str(folder))
    return write_page(out or run.result.folder / REPORT, "run.html.jinja", run_values(run))


def write_comparison(folders: Sequence[str], out: Path | None = None) -> Path:
    """Write a page that compares finished runs with the first one; return the file.

    Raise as `write_report` does.
    """
    runs = [read_run(folder) for folder in folders]
    comparison = compare(folders, other_rows=True)
    names = [letter(number) for number in range(len(runs))]
    values = {
        "title": f"Comparison of {len(runs)} runs",
        "comparison": comparison,
        "runs": list(zip(names, comparison.results, strict=True)),
        "tests": list(zip(names[1:], comparison.tests, strict=False)),
        "charts": sections.curves(dict(zip(names, runs, strict=True))),
        "without_curves": [run.name for run in runs if not run.log],
        "num_resamples": NUM_RESAMPLES,
        "seeds_of": seeds_of,
    }
    return write_page(out or Path(COMPARISON), "comparison.html.jinja", values)


def run_values(run: ReportedRun) -> dict[str, Any]:
    """Return what the template of a single run shows."""
    sidecar, statistics = run.sidecar, run.statistics
    metrics = sidecar["metrics"]
    splits = sidecar["dataset"].get("splits", {})
    reported = splits.get("reported", "eval")
    confusion = None
    if run.task.chart == "confusion_matrix" and "confusion_matrix" in metrics:
        confusion = sections.confusion_matrix(sidecar["labels"], metrics["confusion_matrix"])
    return {
        "title": run.recipe.name,
        "run": run,
        "recipe": run.recipe,
        "sidecar": sidecar,
        "metrics": metrics,
        "primary": metrics["primary"],
        "split_names": sections.SPLITS,
        "reported": sections.SPLITS[reported],
        "part": describe_part({"split": reported, "part": "all"} | splits.get(reported, {})),
        "statistics": statistics,
        "charts": sections.curves({"": run}),
        "log": sections.log_table(run.log),
        "confusion": confusion,
        "labels": sections.label_table(metrics),
        "result_chart": sections.result_chart(run),
        "ranked": sections.ranked_rows(run),
        "samples": sections.sample_pairs(run),
        "lengths": sections.length_charts(statistics) if statistics else {},
        "timing": sections.timing(run),
        "commands": sections.commands(run),
        "fields": sections.recipe_fields(run.recipe),
        "missing": missing(run),
    }


def missing(run: ReportedRun) -> list[str]:
    """Return the files that a part of the report would be made of and that are not there."""
    there = {
        METRICS: run.log,
        PREDICTIONS: run.rows,
        SAMPLES: run.samples,
        STATISTICS: run.statistics,
    }
    return [name for name, content in there.items() if not content]


def write_page(file: Path, template: str, values: dict[str, Any]) -> Path:
    """Render a template and write it atomically: a reader sees the old page or the new one."""
    css = environment().get_template("style.css.jinja").render()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    page = environment().get_template(template)
    text = page.render(values, css=Markup(css), css_sha256=digest)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)
    return file


@cache
def environment() -> Environment:
    """Return the environment of the templates, where every value is escaped."""
    made = Environment(
        loader=PackageLoader("pipelines.html_report"),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {each.__name__: each for each in (breakable, cut, duration, number, score)}
    made.tests["difference"] = lambda value: isinstance(value, Difference)
    return made
