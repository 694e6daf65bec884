"""How far the outputs of a model are from those of another."""

from __future__ import annotations

import torch


def divergence(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the Kullback-Leibler divergence from a teacher over the last dimension.

    Logits are divided by the temperature, and the divergence multiplied by its square, so that its
    gradients keep their size next to those of labels (Hinton et al. 2015).
    """
    expected = torch.log_softmax(teacher / temperature, -1)
    apart = expected - torch.log_softmax(logits / temperature, -1)
    return (expected.exp() * apart).sum(-1) * temperature**2
