"""The loss of language models: at the head where that is all, so that no logits are stored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

CHUNK = 2**25
"""Most logits at once, 134 MB in fp32; a batch with fewer is not cut."""


class LossHead(torch.nn.Linear):
    """A head that gives losses in place of logits where it has labels.

    Inside the model, so that whatever wraps it (a compiler, processes) sees the weights used.
    """

    labels: torch.Tensor | None = None
    """(batch, length) tokens, -100 where there is none to learn."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the summed loss in training; in evaluation (batch, length), 0 where none is due.

        Without labels return logits.
        """
        if self.labels is None:
            return super().forward(hidden)
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if torch.is_autocast_enabled(hidden.device.type):  # which does not know the chunked loss
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        # Labels are shifted rather than hidden states, a slice of which would be copied
        following = next_tokens(self.labels)
        num_rows = max(1, CHUNK // len(weight))
        options = None
        if following.numel() > num_rows:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=num_rows)
        in_training = torch.is_grad_enabled()
        # In bfloat16 the chunked sum is rounded to it, by 0.2 % of the logged loss; no gradient is
        losses = F.linear_cross_entropy(
            hidden.flatten(0, 1),
            weight,
            following.flatten(),
            linear_bias=bias,
            reduction="sum" if in_training else "none",
            options=options,
        )
        return losses if in_training else losses.view(following.shape)


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return the label of each position, (batch, length): the next token, -100 at the last."""
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each position, (batch, length), 0 where its label is -100."""
    following = next_tokens(labels)
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), following.flatten(), reduction="none", ignore_index=-100
    )
    return losses.view(following.shape)


def with_loss_head(model: PreTrainedModel) -> LossHead:
    """Put a LossHead in the place of a model's head, with its weights, and return it."""
    given = model.get_output_embeddings()
    assert isinstance(given, torch.nn.Linear)
    head = LossHead(given.in_features, given.out_features, device="meta")
    head.weight, head.bias = given.weight, given.bias
    model.set_output_embeddings(head)
    return head
