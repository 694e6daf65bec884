"""The cross-entropy of a linear head, a chunk of rows at a time, with its gradients.

The gradients of a sum are computed with it, while the logits of a chunk exist: they are never
computed again, and never exist as a whole. torch has the like from 2.13 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from pipelines.models.liger_upstream import has_kernel, losses_and_gradients_in_place

CHUNK = {"cpu": 2**25, "cuda": 2**27}
"""Most logits at once by device; a batch with fewer is not cut. 8 bytes each at most."""
ALIGNED = {"cuda": 64}
"""What classes are padded to a multiple of, by device: a GPU's products of odd sizes are slow."""
IGNORED = -100
"""The target of a row without a loss."""


def summed_loss(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the sum of the losses, a scalar in fp32 that has the gradients of all inputs.

    `rows` are (rows, width), `weight` (classes, width), `bias` (classes,), `targets` (rows,) with
    IGNORED where no loss is due. Products are computed in `dtype`.
    """
    return apply_eagerly(rows, weight, bias, targets, dtype)


def each_loss(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the losses of the rows of `summed_loss`, (rows,) in fp32, 0 where none is due."""
    head, offsets = prepare_head(weight, bias, dtype)
    losses = zeros(rows[:, 0])
    for chunk in chunks(rows, head):
        logits = functional.linear(rows[chunk].to(dtype), head, offsets).to(losses.dtype)
        losses[chunk] = functional.cross_entropy(
            logits, targets[chunk], reduction="none", ignore_index=IGNORED
        )
    return losses


class SummedLoss(torch.autograd.Function):
    """The sum of the losses. What backward needs are the gradients, which forward computes."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        head, offsets = prepare_head(weight, bias, dtype)
        of_rows, of_weight, of_bias = ctx.needs_input_grad[:3]
        row_grads = torch.empty_like(rows) if of_rows else None
        weight_grad = zeros(head) if of_weight else None
        bias_grad = zeros(head[:, 0]) if of_bias else None
        total = zeros(head[0, 0])
        for chunk in chunks(rows, head):
            inputs = rows[chunk].to(dtype)
            logits = functional.linear(inputs, head, offsets)
            losses, grads = losses_and_gradients(logits, targets[chunk])
            total += losses.sum()
            if row_grads is not None:
                row_grads[chunk] = torch.mm(grads, head)
            if weight_grad is not None and dtype == weight_grad.dtype:
                weight_grad.addmm_(grads.t(), inputs)
            elif weight_grad is not None:
                weight_grad += torch.mm(grads.t(), inputs)
            if bias_grad is not None:
                bias_grad += grads.sum(0, dtype=bias_grad.dtype)
        ctx.save_for_backward(row_grads, unpadded(weight_grad, weight), unpadded(bias_grad, bias))
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        # In place: a second backward finds them changed, and torch raises
        scaled = [None if grad is None else grad.mul_(scale) for grad in ctx.saved_tensors]
        return *scaled, None, None


# torch 2.11 compiles it to wrong gradients
apply_eagerly: Callable[..., torch.Tensor] = torch.compiler.disable(  # type: ignore[no-untyped-call]
    SummedLoss.apply
)


def losses_and_gradients(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of rows in fp32, and the gradients of the logits in their type.

    Logits are (rows, classes); they are overwritten. Liger's kernel does it in one pass on a GPU.
    """
    if has_kernel(logits.device):
        return losses_and_gradients_in_place(logits, targets, IGNORED), logits
    due = targets != IGNORED
    places = torch.where(due, targets, 0)[:, None]
    logs = torch.log_softmax(logits, 1, dtype=at_least_fp32(logits.dtype))
    losses = logs.gather(1, places)[:, 0].neg_() * due
    grads = logs.exp_().scatter_add_(1, places, torch.full_like(places, -1, dtype=logs.dtype))
    return losses, grads.mul_(due[:, None]).to(logits.dtype)


def prepare_head(
    weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight and bias in a type, with classes of probability 0 added to ALIGNED."""
    head = weight.to(dtype)
    offsets = None if bias is None else bias.to(dtype)
    missing = -len(weight) % ALIGNED.get(weight.device.type, 1)
    if not missing:
        return head, offsets
    offsets = head.new_zeros(len(head)) if offsets is None else offsets
    offsets = functional.pad(offsets, (0, missing), value=float("-inf"))
    return functional.pad(head, (0, 0, 0, missing)), offsets


def chunks(rows: torch.Tensor, head: torch.Tensor) -> Iterator[slice]:
    """Yield slices of the rows whose logits fit a chunk."""
    size = max(1, CHUNK.get(rows.device.type, CHUNK["cuda"]) // len(head))
    for start in range(0, len(rows), size):
        yield slice(start, start + size)


def zeros(like: torch.Tensor) -> torch.Tensor:
    """Return zeros of a shape, to sum in."""
    return torch.zeros_like(like, dtype=at_least_fp32(like.dtype))


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return fp32 for shorter types."""
    return torch.promote_types(dtype, torch.float32)


def unpadded(grad: torch.Tensor | None, of: torch.Tensor | None) -> torch.Tensor | None:
    """Return a gradient without the classes that were added, in the type of what it is of."""
    return grad if grad is None or of is None else grad[: len(of)].to(of.dtype)
