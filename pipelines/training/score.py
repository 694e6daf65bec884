"""Score rows with a loaded result."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

from pipelines.data.rows import Examples
from pipelines.hub.load import LoadedResult
from pipelines.reporting.progress import RunProgress
from pipelines.training.build import build_trainer


def score_result(loaded: LoadedResult, rows: Examples) -> dict[str, Any]:
    """Return the metrics of a result on rows."""
    recipe, tokenizer, labels = loaded.recipe, loaded.tokenizer, loaded.labels
    # the Trainer creates its folder
    with RunProgress() as progress, tempfile.TemporaryDirectory() as scratch:
        with progress.phase("encoding", "tokenising"):
            held_out = recipe.task.features(rows, tokenizer, labels, training=False)
        recipe.task.check_scorable(held_out)
        trainer = build_trainer(
            replace(recipe, output_dir=scratch),
            loaded.model,
            tokenizer,
            train=None,
            scored={"eval": held_out},
            labels=labels,
            progress=progress,
        )
        return trainer.score("eval").metrics
