"""The one kernel of Liger that is used: cross-entropy and its gradient in one pass over logits.

Liger's own functions around it choose chunks that are small for GPT-2's width, round losses to the
type of the logits and wait for the device in each.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch

WARPS = 32  # which Liger takes for every type on NVIDIA GPUs up to Hopper


@functools.cache
def is_installed() -> bool:
    """Tell whether Liger is there, the extra `gpu`."""
    return importlib.util.find_spec("liger_kernel") is not None


def has_kernel(device: torch.device) -> bool:
    """Tell whether a device has the kernel."""
    return device.type == "cuda" and torch.version.hip is None and is_installed()


def losses_and_gradients_in_place(
    logits: torch.Tensor, targets: torch.Tensor, ignored: int
) -> torch.Tensor:
    """Return (rows,) losses in fp32, and overwrite (rows, classes) logits by their gradients.

    A row whose target is `ignored` has no loss, and gradients of 0.
    """
    from liger_kernel.ops import cross_entropy

    kernel: Any = cross_entropy.liger_cross_entropy_kernel
    losses = torch.zeros(len(logits), device=logits.device)
    num_classes = logits.shape[1]
    block = min(cross_entropy.MAX_FUSED_SIZE, 1 << (num_classes - 1).bit_length())
    kernel[(len(logits),)](
        X_ptr=logits,
        X_stride=logits.stride(0),
        Y_ptr=targets,
        Y_stride=targets.stride(0),
        weight_ptr=None,
        loss_ptr=losses,
        z_loss_ptr=None,
        loss_stride=losses.stride(0),
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        n_cols=num_classes,
        n_non_ignore=1,
        sum_non_ignore_weight=1,
        ignore_index=ignored,
        weight_sum=0.0,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="sum",
        softcap=None,
        RETURN_Z_LOSS=False,
        RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False,
        BLOCK_SIZE=block,
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False,
        HAS_GRADIENTS=True,
        num_warps=WARPS,
    )
    return losses
