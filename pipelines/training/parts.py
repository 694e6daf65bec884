"""What every trainer is made of, whatever the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import EvalPrediction, PreTrainedTokenizerBase

from pipelines.models.chunked_loss import token_losses
from pipelines.tasks.base import Features, Loss, RowResult, Task


@dataclass(frozen=True)
class TrainerParts:
    """The parts of a trainer. `base` is the model without an adapter's class.

    `arguments` makes TrainingArguments of a class and its own options; `options` are what all
    trainers take.
    """

    task: Task
    base: Any
    tokenizer: PreTrainedTokenizerBase
    train: Features | None
    labels: tuple[str, ...]
    arguments: Callable[..., Any]
    options: dict[str, Any]
    teacher: Any = None
    """The Teacher of `training/distillation.py`, if there is one."""

    @property
    def pad_token_id(self) -> int:
        """Return the token that pads rows."""
        return int(self.tokenizer.pad_token_id or 0)


@dataclass(frozen=True)
class ScoredSplit:
    """The rows of a split that is scored."""

    task: Task
    features: Features
    labels: tuple[str, ...]

    @cached_property
    def order(self) -> list[int]:
        """The rows in the order that needs least padding: the longest first."""
        sizes = [-self.task.num_tokens(row) for row in self.features.dataset]
        return sorted(range(len(sizes)), key=sizes.__getitem__)

    @cached_property
    def dataset(self) -> Any:
        """The rows in that order."""
        return Subset(self.features.dataset, self.order)

    def in_row_order(self, predictions: Any, label_ids: Any) -> EvalPrediction:
        """Return predictions for `dataset` in the order of the split's rows."""
        rows = np.argsort(self.order)
        return EvalPrediction(predictions[rows], label_ids[rows])

    def metrics(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Return the metrics of predictions in the order of the split's rows."""
        return self.task.score(prediction, self.features, self.labels).as_metrics()

    def tuned(self, options: dict[str, Any]) -> ScoredSplit:
        """Return the split with a task whose options the validation rows have decided."""
        return replace(self, task=self.task.tuned(options))

    def row_results(self, prediction: EvalPrediction) -> list[RowResult]:
        """Return the results of the split's rows; `prediction` is in their order."""
        return self.task.row_results(prediction, self.features, self.labels)


def no_metrics(prediction: EvalPrediction) -> dict[str, Any]:
    """Return none: ScoredSplit computes them. Without a function Trainer keeps no predictions."""
    return {}


@dataclass(frozen=True)
class TaskLoss:
    """A task's own loss, as the Trainer calls it.

    Trainer calls it in evaluations too, but what they report as `loss` is that of `Task.score`,
    which has no weights and no smoothing.
    """

    loss: Loss

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the summed loss divided by the labels of the global batch."""
        loss: torch.Tensor = self.loss(outputs, labels, num_items_in_batch)
        return loss


def summed_losses(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """Return the loss of a model that gives losses in place of logits."""
    loss: torch.Tensor = outputs.losses.sum() / num_items_in_batch
    return loss


def losses_from_logits(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """Return the loss of a model that does more to its logits than its head does."""
    loss: torch.Tensor = token_losses(outputs.logits, labels).sum() / num_items_in_batch
    return loss


@dataclass(frozen=True)
class ReducedLosses:
    """What a language model's scorer keeps of a batch; `from_logits` if that has logits."""

    task: Task
    from_logits: bool

    def __call__(self, outputs: Any, labels: Any) -> Any:
        """Return the task's reduction of (batch, length) losses."""
        losses = token_losses(outputs, labels) if self.from_logits else outputs
        return self.task.reduce_logits(losses, labels)
