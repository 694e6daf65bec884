"""Trainers that hand the batch's labels or packing plan to the model."""

from __future__ import annotations

from typing import Any

from pipelines.models.loss_head import LossHead
from pipelines.models.packing import Packing
from pipelines.training.trainer import RecipeTrainer


class LanguageModelTrainer(RecipeTrainer):
    """A RecipeTrainer that gives each batch's labels to the head."""

    def __init__(self, *, head: LossHead, **options: Any):
        super().__init__(**options)
        self.head = head

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.head.labels = inputs["labels"]
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.head.labels = None


class PackedTrainer(RecipeTrainer):
    """A RecipeTrainer that packs batches as their plans say."""

    def __init__(self, *, packing: Packing, **options: Any):
        super().__init__(**options)
        self.packing = packing

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.packing.plan = inputs.pop("plan", None)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.packing.plan = None
