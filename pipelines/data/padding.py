"""Pad rows to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def round_up(length: int, multiple: int) -> int:
    """Return the first multiple that is no less than a length."""
    return -(-length // multiple) * multiple


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int) -> torch.Tensor:
    """Return token ids, (rows, length), a `multiple` that the longest row fits into."""
    import numpy as np
    import torch

    padded = np.full((len(rows), round_up(max(map(len, rows)), multiple)), value)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return torch.from_numpy(padded)


def pad_inputs(rows: list[dict[str, Any]], pad_token_id: int, multiple: int) -> dict[str, Any]:
    """Pad `input_ids` on the right; the mask comes from lengths, so a true EOS stays visible."""
    import torch

    ids = [row["input_ids"] for row in rows]
    inputs = pad_right(ids, pad_token_id, multiple)
    lengths = torch.tensor([[len(row)] for row in ids])
    places = torch.arange(inputs.shape[1])
    return {"input_ids": inputs, "attention_mask": (places < lengths).long()}
