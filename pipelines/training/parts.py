"""What every trainer is made of, whatever the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedTokenizerBase

from pipelines.models.chunked_loss import token_losses
from pipelines.tasks.base import Features, Loss, Task


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
    held_out: Features
    labels: tuple[str, ...]
    arguments: Callable[..., Any]
    options: dict[str, Any]

    @property
    def pad_token_id(self) -> int:
        """Return the token that pads rows."""
        return int(self.tokenizer.pad_token_id or 0)


@dataclass(frozen=True)
class Scorer:
    """Scores an evaluation whose rows were sorted; `given_order` leads back."""

    task: Task
    held_out: Features
    labels: tuple[str, ...]
    given_order: np.ndarray[Any, np.dtype[np.intp]]

    def __call__(self, prediction: Any) -> dict[str, Any]:
        """Return the Trainer's metrics."""
        order = self.given_order
        given = EvalPrediction(prediction.predictions[order], prediction.label_ids[order])
        return self.task.score(given, self.held_out, self.labels).as_metrics()


def longest_first(task: Task, held_out: Features) -> list[int]:
    """Return the evaluation rows in the order that needs least padding."""
    rows = held_out.dataset
    return sorted(range(len(rows)), key=lambda index: -task.num_tokens(rows[index]))


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
