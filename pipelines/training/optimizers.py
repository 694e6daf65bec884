"""Muon for the matrices of a decoder's blocks, with AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.recipe.values import Train


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer, for schedules and checkpoints.

    Muon takes the matrices inside blocks: not embeddings, heads, biases and norms. Its updates are
    scaled to the size of AdamW's, so that one learning rate serves both. The groups of parameters
    are those of the two parts, which a schedule therefore steers.
    """

    def __init__(self, model: torch.nn.Module, *, train: Train):
        blocks = {
            id(parameter)
            for layers in model.modules()
            if isinstance(layers, torch.nn.ModuleList)
            for parameter in layers.parameters()
        }
        matrices: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        undecayed: list[torch.Tensor] = []
        for parameter in model.parameters():
            if parameter.ndim < 2:
                undecayed.append(parameter)
            else:
                (matrices if id(parameter) in blocks else others).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        self.parts = (
            torch.optim.Muon(
                matrices,
                lr=train.learning_rate,
                weight_decay=train.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                groups,
                lr=train.learning_rate,
                betas=(train.adam_beta1, train.adam_beta2),
                weight_decay=train.weight_decay,
                fused=True,
            ),
        )
        super().__init__(self.groups(), {"lr": train.learning_rate})  # which schedules read

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups of both parts, the same objects."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        """Update all parameters."""
        assert closure is None
        parts: tuple[Any, ...] = self.parts
        for part in parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self.groups()  # loading makes new ones


def muon_factory() -> type[MuonWithAdamW]:
    """Return what transformers' Trainer calls with the whole model."""
    return MuonWithAdamW
