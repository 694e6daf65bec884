"""Training that leaves zeros at zero."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class KeepZeros(TrainerCallback):
    """Set the weights that are zero at the start of the training to zero after each update."""

    def __init__(self) -> None:
        self.zeros: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note them, in matrices alone: biases may start at zero."""
        parameters = kwargs["model"].parameters()
        matrices = [each for each in parameters if each.ndim > 1]
        self.zeros = [(each, each.detach() == 0) for each in matrices]

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for parameter, zeros in self.zeros:
            parameter.masked_fill_(zeros, 0.0)
