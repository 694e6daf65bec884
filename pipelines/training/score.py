"""Score rows with a loaded result."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

from pipelines.data.rows import Examples
from pipelines.hub.load import LoadedResult
from pipelines.training.build import build_trainer


def score_result(loaded: LoadedResult, rows: Examples) -> dict[str, Any]:
    """Return the metrics of a result on rows."""
    recipe, tokenizer, labels = loaded.recipe, loaded.tokenizer, loaded.labels
    held_out = recipe.task.features(rows, tokenizer, labels, training=False)
    recipe.task.check_scorable(held_out)
    with tempfile.TemporaryDirectory() as scratch:  # the Trainer creates its folder
        trainer = build_trainer(
            replace(recipe, output_dir=scratch),
            loaded.model,
            tokenizer,
            train=None,
            scored={"eval": held_out},
            labels=labels,
        )
        return trainer.score("eval").metrics
