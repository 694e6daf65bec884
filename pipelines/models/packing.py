"""Rows packed into fewer, none of which sees another, so that a model computes on no padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.data.bin_packing import best_fit
from pipelines.data.padding import round_up
from pipelines.tasks.base import MULTIPLE

WORTH = 0.9  # a batch is packed where that leaves at most this share of its cost
CAPACITIES = (1, 1.25, 1.5, 2, 3)  # of bins, in lengths of the longest row
LONG = 2048  # tokens of a row at which attention costs as much as all the rest, or near it


def fitted(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Return the cheapest bins for the rows of a batch, and the length that they are given."""
    found = []
    for capacity in CAPACITIES:
        bins = best_fit(lengths, int(capacity * max(lengths)))
        used = max(sum(lengths[row] for row in each) for each in bins)
        found.append((bins, round_up(used, MULTIPLE)))
    return min(found, key=lambda each: cost(len(each[0]), each[1]))


def cost(num_rows: int, length: int) -> float:
    """Return what rows of one length cost a model, in tokens without attention."""
    return num_rows * length * (1 + length / LONG)


def plan(lengths: Sequence[int], width: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return how to pack rows padded on the right to a `width`, or None where it is not worth it.

    The first tensor, (packed rows, packed length), holds the place in the flat padded batch of each
    token; padding takes place 0 again. The second, (rows, width), leads back.
    """
    bins, used = fitted(lengths)
    if cost(len(bins), used) > WORTH * cost(len(lengths), width):
        return None
    packed = np.zeros((len(bins), used), dtype=np.int64)
    back = np.zeros((len(lengths), width), dtype=np.int64)
    for number, rows in enumerate(bins):
        start = 0
        for row in rows:
            places = np.arange(lengths[row])
            packed[number, start : start + lengths[row]] = row * width + places
            back[row, : lengths[row]] = number * used + start + places
            start += lengths[row]
    return torch.from_numpy(packed), torch.from_numpy(back)


class Packing:
    """Packs what the body of a model reads, and unpacks what it gives to the head.

    Heads, labels and losses see the padded batch, with states of padding that mean nothing. `plan`
    is that of the batch in hand; without one the body runs as ever.
    """

    def __init__(self, body: torch.nn.Module):
        self.plan: tuple[torch.Tensor, torch.Tensor] | None = None
        body.register_forward_pre_hook(self.pack, with_kwargs=True)
        body.register_forward_hook(self.unpack)

    def pack(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pack the tokens; positions that begin again are what keeps rows apart."""
        if self.plan is None:
            return None
        packed, _ = self.plan
        padded = args[0] if args else kwargs["input_ids"]
        inputs = {
            "input_ids": padded.flatten()[packed],
            "position_ids": packed % padded.shape[1],
            "attention_mask": None,
        }
        return (), kwargs | inputs

    def unpack(self, body: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Unpack the last hidden states."""
        if self.plan is None:
            return None
        _, back = self.plan
        states = output.last_hidden_state.flatten(0, 1).index_select(0, back.flatten())
        output.last_hidden_state = states.unflatten(0, back.shape)
        return output


def with_plan(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    """Return a collator that adds the plan of a batch that is worth packing."""

    def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = collate(rows)
        found = plan([len(row["input_ids"]) for row in rows], inputs["input_ids"].shape[1])
        return inputs if found is None else inputs | {"plan": found}

    return batch
