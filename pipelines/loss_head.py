"""The loss of language models: at the head where that is all, so that no logits are stored."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from pipelines.pretrained import num_embeddings
from pipelines.trainer import RecipeTrainer

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


def gives_logits_of_head(model: PreTrainedModel) -> bool:
    """Try whether a model returns what its head gives, for each position and unchanged.

    Some scale, cap or cut it (Granite, Cohere, Gemma 2). The head is made to give known numbers,
    large enough to be capped, so that the weights do not matter.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    given: list[torch.Tensor] = []

    def replace(head: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        numbers = torch.linspace(-100, 100, output.numel(), device=output.device)
        given.append(numbers.view(output.shape).to(output.dtype))
        return given[-1].clone()

    ids = torch.arange(4, device=model.device)[None] % num_embeddings(model)
    training = model.training
    model.eval()
    hook = head.register_forward_hook(replace)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        hook.remove()
        model.train(training)
    (first, *others) = given
    return not others and first.shape[:2] == ids.shape and torch.equal(first, logits.to(first))


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


def with_loss_head(model: PreTrainedModel) -> LossHead:
    """Put a LossHead in the place of a model's head, with its weights, and return it."""
    given = model.get_output_embeddings()
    assert isinstance(given, torch.nn.Linear)
    head = LossHead(given.in_features, given.out_features, device="meta")
    head.weight, head.bias = given.weight, given.bias
    model.set_output_embeddings(head)
    return head
