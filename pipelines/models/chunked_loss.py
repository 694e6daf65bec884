"""A language model whose loss is computed in chunks: its logits never exist as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from pipelines.models.linear_cross_entropy import each_loss, summed_loss
from pipelines.models.upstream import replace_forward


@dataclass
class TokenLosses(ModelOutput):
    """What a model returns for targets: their summed cross-entropy; each one's in evaluation.

    In evaluation `losses` is (batch, length), 0 at ignored positions.
    """

    losses: torch.Tensor | None = None


def use_chunked_loss(model: PreTrainedModel) -> None:
    """Let a language model compute losses in place of logits where it is called with `targets`.

    Targets are (batch, length) tokens, not shifted, -100 at ignored positions. The model
    must be one that `gives_logits_of_head`. Without targets it returns logits as before. The loss
    is a part of the forward pass, so that compilers, DDP and autocast see it.
    """
    own: Callable[..., ModelOutput] = type(model).forward

    @functools.wraps(own)
    def forward(
        self: Any, *args: Any, targets: torch.Tensor | None = None, **kwargs: Any
    ) -> ModelOutput:
        if targets is None:
            return own(self, *args, **kwargs)
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        return TokenLosses(losses=chunked_losses(hidden, self.get_output_embeddings(), targets))

    replace_forward(model, forward)


def chunked_losses(
    hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor
) -> torch.Tensor:
    """Return the summed loss, or (batch, length) losses where no gradient is computed.

    `hidden` is (batch, length, width), the input of the head. Products are in autocast's type if it
    is on, the softmax and all sums in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    # Labels are shifted rather than hidden states, a slice of which would be copied
    following = next_tokens(labels)
    rows, targets = hidden.flatten(0, 1), following.flatten()
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled():
            return summed_loss(rows, head.weight, head.bias, targets, dtype)
        return each_loss(rows, head.weight, head.bias, targets, dtype).view(following.shape)


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return the label of each position, (batch, length): the next token, -100 at the last."""
    return functional.pad(labels[:, 1:], (0, 1), value=-100)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each position, (batch, length), 0 where its label is -100."""
    following = next_tokens(labels)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), following.flatten(), reduction="none", ignore_index=-100
    )
    return losses.view(following.shape)
