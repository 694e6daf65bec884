"""The score of a compressed model, as a run scores its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.final_score import final_score
from pipelines.hub.load import load_result
from pipelines.preparing.features import prepared_features
from pipelines.preparing.rows import load_prepared
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import Store
from pipelines.recipe.recipe import Recipe
from pipelines.results.files import PREDICTIONS, read_manifest, write_manifest
from pipelines.results.predictions import write_predictions
from pipelines.training.score import scoring

OF_THE_RUN = ("baseline", "rows_skipped", "seconds")
"""Metrics that a score does not have."""


def score_again(folder: Path) -> None:
    """Score the model of a result, and write score and predictions to the result.

    What the validation rows decide, such as the thresholds of labels, they decide again.
    """
    recipe = Recipe.from_file(folder / "recipe.json")  # in whose task nothing is decided
    loaded, task = replace(load_result(folder), recipe=recipe), recipe.task
    store = Store()
    splits, _ = check_prepared(task, load_prepared(task.dataset, store), None, store)
    given: Any = {"labels": loaded.labels, "training": False, "store": store}
    scored = {
        name: prepared_features(task, rows, loaded.tokenizer, **given)
        for name, rows in splits.scored.items()
    }
    with scoring(loaded, scored) as trainer:
        final = final_score(trainer, splits.record["reported"])
    (folder / PREDICTIONS).unlink(missing_ok=True)
    write_predictions(folder, final.rows)
    of_run = {name: loaded.metrics[name] for name in OF_THE_RUN if name in loaded.metrics}
    write_manifest(
        folder, read_manifest(folder) | final.tuned | {"metrics": final.metrics | of_run}
    )
