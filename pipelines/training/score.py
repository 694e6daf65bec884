"""Score rows with a loaded result."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipelines.data.rows import Examples
from pipelines.hub.load import LoadedResult
from pipelines.preparing.features import prepared_features
from pipelines.preparing.store import Store
from pipelines.reporting.progress import RunProgress
from pipelines.tasks.base import Features
from pipelines.training.build import build_trainer
from pipelines.training.trainer import RecipeTrainer
from pipelines.training.upstream import scorable


def score_result(loaded: LoadedResult, rows: Examples) -> dict[str, Any]:
    """Return the metrics of a result on rows."""
    recipe = loaded.recipe
    with RunProgress() as progress:
        with progress.phase("encoding", "tokenising"):
            held_out = prepared_features(
                recipe.task,
                rows,
                loaded.tokenizer,
                loaded.labels,
                training=False,
                store=Store(progress),
            )
        recipe.task.check_scorable(held_out)
        return score_features(loaded, held_out, progress)


def score_features(
    loaded: LoadedResult, held_out: Features, progress: RunProgress | None = None
) -> dict[str, Any]:
    """Return the metrics of a result on encoded rows."""
    with scoring(loaded, {"eval": held_out}, progress) as trainer:
        return trainer.score("eval").metrics


@contextmanager
def scoring(
    loaded: LoadedResult, scored: Mapping[str, Features], progress: RunProgress | None = None
) -> Iterator[RecipeTrainer]:
    """Yield a trainer of a result that scores splits, and trains on nothing."""
    # The Trainer creates its folder
    with tempfile.TemporaryDirectory() as scratch, scorable(loaded.model):
        yield build_trainer(
            replace(loaded.recipe, output_dir=scratch),
            loaded.model,
            loaded.tokenizer,
            train=None,
            scored=scored,
            labels=loaded.labels,
            progress=progress,
        )
