"""Score a result again: on the rows of its run, or on other rows, and by other metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import metrics
from pipelines.console import console, say
from pipelines.data.load import read_file
from pipelines.data.local_files import is_local
from pipelines.data.readers import describe_format
from pipelines.data.rows import Examples
from pipelines.data.splits import describe_part
from pipelines.data.validate import check_columns, drop_unusable, raise_rejected
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.hub.load import LoadedResult, load_result
from pipelines.inference.predict import predict_examples
from pipelines.preparing.rows import load_prepared
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import Store
from pipelines.process import quiet_libraries
from pipelines.reporting.report import print_score
from pipelines.results.sidecar import reported_rows_sha256
from pipelines.training.score import score_result


@dataclass(frozen=True)
class Evaluation:
    """A score, and the score that the run reported for the same rows; None for other rows."""

    metrics: dict[str, Any]
    claimed: float | None

    @property
    def score(self) -> float:
        """The primary metric."""
        return float(self.metrics[self.metrics["primary"]])

    @property
    def equal(self) -> bool:
        """Tell whether the score equals the reported one, to 1e-5."""
        return self.claimed is not None and math.isclose(
            self.score, self.claimed, rel_tol=1e-5, abs_tol=1e-9
        )


@quiet_libraries()
def evaluate(
    repo: str | Path,
    *,
    revision: str | None = None,
    base: str | None = None,
    data: Path | None = None,
    metric: str | None = None,
    metric_options: dict[str, Any] | None = None,
) -> Evaluation:
    """Score a result on the evaluation split of its recipe, or on the rows of a file.

    `base` replaces the base that an adapter names, say by a copy on disk. `metric` adds an
    `evaluate` module: a name in pipelines/metrics, a path, or a name on the Hub; `metric_options`
    are arguments of its `compute`, and its results are in `metrics["added"]`.

    Raise RecipeError for a result that cannot be loaded and a metric that does not exist or refuses
    its options, and DataError for rows that cannot be scored or are not on this machine.
    """
    loaded = load_result(repo, revision, base=base)
    module = None if metric is None else metric_module(metric)
    if metric is not None and loaded.recipe.task.head is None:
        text = "a language model predicts no labels from which it could be computed."
        raise RecipeError([Problem("metric", text)])
    rows = file_rows(loaded, data) if data else evaluation_rows(loaded)
    found = score_result(loaded, rows)
    print_score(loaded.recipe.name, found)
    if metric is not None:
        found["added"] = added_metric(metric, module, loaded, rows, metric_options)
    result = Evaluation(found, claimed_score(loaded, rows.fingerprint()))
    print_comparison(result)
    return result


def file_rows(loaded: LoadedResult, file: Path) -> Examples:
    """Return the rows of a file. Raise DataError that names those that cannot be scored."""
    read_rows = read_file(file)
    rows = drop_unusable(loaded.recipe.task, read_rows, loaded.labels)
    note = describe_format(file)
    if note is not None:
        console().print(f"  {note}", style="yellow", markup=False)
    check_columns(loaded.recipe.task, (read_rows, rows))
    raise_rejected(rows.rejected)
    return rows


def evaluation_rows(loaded: LoadedResult) -> Examples:
    """Return the rows that the run was scored on."""
    source = loaded.recipe.task.dataset
    try:
        is_local(source)
    except DataError as error:
        text = f"{error} The run read its rows there. Score on your own with --data FILE."
        raise DataError(text) from None
    store = Store()
    raw = load_prepared(source, store)
    splits, _ = check_prepared(loaded.recipe.task, raw, None, store)
    reported = splits.record["reported"]
    use = "" if splits.test is None else f", the {reported} rows"
    say(f"  rows: {describe_part(splits.record[reported])}{use}")
    return splits.reported


def claimed_score(loaded: LoadedResult, rows_sha256: str) -> float | None:
    """Return the score that the run reported for rows, or None for other rows.

    A run that reports a test score has one of its validation rows, too.
    """
    metrics = loaded.metrics
    if rows_sha256 == reported_rows_sha256(loaded.sidecar):
        return float(metrics[metrics["primary"]])
    if rows_sha256 == loaded.sidecar["dataset"]["eval_rows_sha256"] and "validation" in metrics:
        return float(metrics["validation"][metrics["primary"]])
    return None


def print_comparison(result: Evaluation) -> None:
    """Print whether the score equals the one that the run reported."""
    if result.claimed is None:
        line = "these are not the rows of the run, so that its score is not compared"
    elif result.equal:
        line = f"equal to the score of the run, {result.claimed:.4f}"
    else:
        line = f"NOT equal: the run claims {result.claimed:.6f}, found {result.score:.6f}"
    console().print(f"  {line}", markup=False)


def metric_module(name: str) -> Any:
    """Load an `evaluate` module by its name here, by a path, or from the Hub."""
    import evaluate

    if name in metrics.NAMES:
        return metrics.load(name)
    if not Path(name).exists():
        console().print(f"{name}: from the Hub; its code runs on this machine", style="yellow")
    try:
        return evaluate.load(name)
    except FileNotFoundError:
        known = ", ".join(metrics.NAMES)
        text = f"no such metric here or on the Hub. Here: {known}."
        raise RecipeError([Problem(name, text)]) from None
    except OSError as error:
        text = f"{name} is copied into HF_HOME, which cannot be written: {error}. Set HF_HOME."
        raise RecipeError([Problem("metric", text)]) from None


def added_metric(
    name: str, module: Any, loaded: LoadedResult, rows: Examples, options: dict[str, Any] | None
) -> dict[str, Any]:
    """Return and print what a further metric computes from the predictions for rows.

    Raise RecipeError when the metric refuses them, or its options.
    """
    features = module.features[0] if isinstance(module.features, list) else module.features
    parts = features["predictions"]
    inputs = loaded.recipe.task.metric_inputs(
        rows,
        predict_examples(loaded, rows),
        loaded.labels,
        parts if isinstance(parts, dict) else (),
    )
    try:
        added: dict[str, Any] = module.compute(**inputs, **(options or {}))
    except (TypeError, ValueError) as error:
        raise RecipeError([Problem("metric", f"{name}: {error}")]) from error
    for key, value in added.items():
        console().print(f"  {key} {value}", markup=False)
    return added
