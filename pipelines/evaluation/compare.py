"""Compare results: what differs in their recipes, what came out, and whether chance explains it.

Imports no torch: only recipe.json, task.json and predictions.jsonl are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.hub.result_folder import result_folder
from pipelines.metrics.bootstrap import Difference, paired_bootstrap
from pipelines.recipe.recipe import Recipe
from pipelines.results.files import PREDICTIONS, damage_of_file, read_manifest
from pipelines.results.predictions import read_predictions
from pipelines.results.sidecar import read_sidecar, reported_rows_sha256
from pipelines.training.identity import comparable, differences

READ = ("recipe.json", "task.json")
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class ComparedResult:
    """A result to compare; `name` is its folder or Hub id, as the user typed it."""

    name: str
    folder: Path
    recipe: Recipe
    sidecar: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the run."""
        metrics: dict[str, Any] = self.sidecar["metrics"]
        return metrics

    @property
    def score(self) -> float:
        """The primary metric."""
        return float(self.metrics[self.metrics["primary"]])

    @property
    def weights_size(self) -> int | None:
        """Bytes of the saved weights, of an adapter or of a whole model, or None."""
        sizes = [
            entry["size"]
            for name, entry in self.sidecar["files"].items()
            if name.endswith(".safetensors")
        ]
        return sum(sizes) or None

    @cached_property
    def rows(self) -> tuple[list[Any], Any] | None:
        """References and (rows, k) values of the rows, or None without predictions.jsonl.

        Raise RecipeError for a file that is damaged, or that is not of the score.
        """
        import numpy as np

        results = read_predictions(self.folder, self.sidecar, self.name)
        if results is None:
            return None
        references, values = [], []
        for result in results:
            references.append(result.reference)
            values.append(result.values)
        numbers = np.asarray(values, dtype=np.float64)
        found = float(self.recipe.task.statistic(numbers.mean(0)[None])[0])
        if not np.isclose(found, self.score, rtol=1e-6, atol=1e-9):
            text = f"{PREDICTIONS} gives {found:.6f}, but the score is {self.score:.6f}."
            raise RecipeError([Problem(self.name, text)])
        return references, numbers


@dataclass(frozen=True)
class Comparison:
    """Results next to each other; the first is the baseline.

    `fields` are the fields of the recipes that differ, each with its value in every result.
    `other_rows` says why the scores are not comparable. `tests` has for every other result the
    difference to the baseline, or the reason why there is none.
    """

    results: Sequence[ComparedResult]
    fields: dict[str, list[Any]]
    other_rows: Sequence[Problem]
    tests: Sequence[Difference | str]

    @property
    def greater_is_better(self) -> bool:
        """Tell whether a greater score is better."""
        first = self.results[0]
        return first.recipe.task.metrics[first.metrics["primary"]]


def compare(repos: Sequence[str], *, other_rows: bool = False) -> Comparison:
    """Compare results, each a folder or a Hub id, with the first one.

    Raise RecipeError for what is not a result, and for scores that are of other rows or of another
    metric, unless `other_rows`.
    """
    results = [read_result(repo) for repo in repos]
    baseline, *others = results
    problems = [problem for each in others for problem in why_other_rows(baseline, each)]
    if problems and not other_rows:
        text = "shows the scores all the same, without a test."
        raise RecipeError([*problems, Problem("other_rows", text)])
    tests = [] if problems else [difference(baseline, each) for each in others]
    return Comparison(results, differing_fields(results), problems, tests)


def read_result(repo: str) -> ComparedResult:
    """Read what a result says of itself.

    Raise RecipeError for what is not a result, and for a recipe.json that has changed since.
    """
    folder = result_folder(repo, files=READ)
    recipe = Recipe.from_file(folder / "recipe.json")
    sidecar = read_sidecar(folder / "task.json")
    try:
        listed = read_manifest(folder)["files"]
    except ValueError as error:
        raise RecipeError([Problem(repo, f"{error}.")]) from None
    if damage := damage_of_file(folder / "recipe.json", listed["recipe.json"]):
        raise RecipeError([Problem(repo, f"{damage}.")])
    return ComparedResult(repo, folder, recipe, sidecar)


def why_other_rows(baseline: ComparedResult, other: ComparedResult) -> Iterator[Problem]:
    """Yield why two scores cannot be compared."""
    metrics = [each.metrics["primary"] for each in (other, baseline)]
    if metrics[0] != metrics[1]:
        text = f"its score is {metrics[0]}, that of {baseline.name} {metrics[1]}."
        yield Problem(other.name, text)
    own, before = (scored_rows(each) for each in (other, baseline))
    if own != before:
        text = f"was scored on other rows than {baseline.name}: {own}, there {before}."
        yield Problem(other.name, text)
        return
    tokens = [each.metrics.get("predicted_tokens") for each in (other, baseline)]
    if None not in tokens and tokens[0] != tokens[1]:
        text = f"its tokens are others than those of {baseline.name} ({tokens[0]:,}, there "
        text += f"{tokens[1]:,}), so that the perplexity of one is of other units."
        yield Problem(other.name, text)


def scored_rows(result: ComparedResult) -> str:
    """Return the split that a score is of, with the fingerprint of its rows."""
    splits = result.sidecar["dataset"]["splits"]
    split = splits.get(splits.get("reported", "eval"), {}).get("split")
    sha256 = f"SHA-256 {reported_rows_sha256(result.sidecar)[:12]}"
    return f"{sha256} of split {split!r}" if split else sha256


def difference(baseline: ComparedResult, other: ComparedResult) -> Difference | str:
    """Return the difference of two results on the same rows, or why there is none."""
    for each in (baseline, other):
        if each.rows is None:
            return f"{each.name} has no {PREDICTIONS} here"
    assert baseline.rows is not None
    assert other.rows is not None
    (references, first), (references_of_other, second) = baseline.rows, other.rows
    if references != references_of_other:
        return "the two cut their texts into different rows"
    if len(references) < 2:
        return "there is only one row"
    return paired_bootstrap(first, second, other.recipe.task.statistic, num_resamples=NUM_RESAMPLES)


def differing_fields(results: Sequence[ComparedResult]) -> dict[str, list[Any]]:
    """Return each field that is not the same in all recipes, with its values.

    A field that only some recipes have, such as an adapter's, is compared as a whole. The name of
    the run is not compared.
    """
    recipes = [comparable(each.recipe) for each in results]
    for each, result in zip(recipes, results, strict=True):
        del each["name"]
        each["versions"] = result.sidecar["versions"]
    paths = {path for each in recipes[1:] for path, _, _ in differences(recipes[0], each)}
    whole = sorted(p for p in paths if not any(p.startswith(f"{other}.") for other in paths))
    return {path: [value_at(each, path) for each in recipes] for path in whole}


def value_at(recipe: dict[str, Any], path: str) -> Any:
    """Return the value of a field; None where the recipe has no such field."""
    value: Any = recipe
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
