"""Causal attention inside the segments of packed rows, by flash attention where it works."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn import functional

from pipelines.log import LOG
from pipelines.models.upstream import flash_attention_of_segments

TOLERANCE = 0.03
"""Largest relative difference of two right kernels in bfloat16, whose numbers have 8 bits."""
TRIED = (3, 130, 1, 17)
"""Lengths of the segments that a kernel is tried on: of one token, and of more than one tile."""


def attend_to_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    *,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Return the output of causal attention inside of segments, (tokens, heads, width of a head).

    Queries, keys and values have that shape, too. Segments begin at `bounds`, as those of
    `packing.segment_bounds`, and have at most `longest` tokens.
    """
    if query.device.type == "cpu":
        return each_segment(query, key, value, bounds, scaling=scaling, dropout=dropout)
    dtype = compute_dtype(query.device, query.dtype)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    options: dict[str, Any] = {"scaling": scaling, "dropout": dropout}
    return flash_attention_of_segments(query, key, value, bounds, longest, **options)


def each_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    *,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Return what `attend_to_segments` does, one segment after the other, on any device."""
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "is_causal": True}
    outputs = []
    for start, end in pairwise(bounds.tolist()):
        # (heads, length, width of a head)
        queries, keys, values = (each[start:end].transpose(0, 1) for each in (query, key, value))
        output = functional.scaled_dot_product_attention(queries, keys, values, **options)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the type that attention computes in: autocast's, if it is on."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else dtype


@functools.cache
def flash_attention_works(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Try whether flash attention to segments is right, for heads of a width.

    It lacks fp32, some widths and old cards. The answer is kept, and a No written to run.log.
    """
    if device.type == "cpu":
        return True
    if dtype not in (torch.float16, torch.bfloat16):
        LOG.info(f"packed rows take a mask: flash attention does not compute in {dtype}")
        return False
    try:
        difference = _difference(device, dtype, width)
    except RuntimeError as error:
        LOG.info(f"packed rows take a mask: flash attention raises on {device}: {error}")
        return False
    if not difference < TOLERANCE:
        LOG.info(f"packed rows take a mask: flash attention is off by {difference} on {device}")
        return False
    return True


@torch.inference_mode(False)
def _difference(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Return the largest relative difference of outputs and gradients from `each_segment`."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(sum(TRIED), 2, width, generator=generator) for _ in range(4)]
    *inputs, weights = (each.to(device, dtype) for each in draws)
    bounds = torch.tensor([*accumulate(TRIED, initial=0)], dtype=torch.int32, device=device)

    def results(attend: Callable[..., torch.Tensor], *arguments: Any) -> list[torch.Tensor]:
        leaves = [each.detach().requires_grad_() for each in inputs]
        output = attend(*leaves, bounds, *arguments, scaling=None, dropout=0.0)
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        expected, found = results(each_segment), results(flash_attention_of_segments, max(TRIED))
    pairs = zip(found, expected, strict=True)
    return max(float((got - right).abs().max() / right.abs().max()) for got, right in pairs)
