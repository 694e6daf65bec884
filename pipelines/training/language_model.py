"""The trainer of language models whose loss needs no logits."""

from __future__ import annotations

from typing import Any

from pipelines.training.trainer import RecipeTrainer


class LanguageModelTrainer(RecipeTrainer):
    """A RecipeTrainer of a model with `use_chunked_loss`."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Call the model with the labels as `targets`: Trainer takes `labels` for its own loss."""
        return super().compute_loss(model, inputs | {"targets": inputs["labels"]}, *args, **kwargs)
