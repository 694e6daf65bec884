"""Options of a task that are decided by the validation rows, after the training."""

from __future__ import annotations

from typing import Any

from transformers import EvalPrediction

from pipelines.tasks.base import Task
from pipelines.training.trainer import RecipeTrainer


def tune(trainer: RecipeTrainer, task: Task, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return what `Task.tune` decides by the trainer's evaluation rows; {} for other tasks.

    Costs a pass over the rows. Every process returns the same.
    """
    if not task.tunes:
        return {}
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), description="Tuning")
    assert output.label_ids is not None
    return task.tune(EvalPrediction(output.predictions, output.label_ids), labels)
