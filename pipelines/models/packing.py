"""Rows of a batch packed into fewer, isolated from each other, to compute on no padding.

Imports no transformers: with the start method "spawn" each worker imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from pipelines.data.bin_packing import best_fit
from pipelines.data.padding import round_up
from pipelines.tasks.base import MULTIPLE

MAX_RELATIVE_COST = 0.9  # a batch is packed if its cost falls to this fraction or below
CAPACITIES = (1, 1.25, 1.5, 2, 3)  # of bins, in lengths of the longest row
LONG = 2048  # tokens of a row at which attention costs about as much as all the rest

Plan = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""How to pack a batch, padded on the right to (rows, width), and how to unpack it.

The first tensor, (packed rows, packed length), has the position in the flat padded batch of each
token; padding has position 0. The second, (rows, width), has positions in the flat packed batch.
The third has the bounds of the packed rows' segments.
"""


def segment_bounds(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Return where segments begin, and the end of the last, (segments + 1,) int32.

    `rows` are the lengths of each row's segments; padding to the `width` is a segment of its own.
    They are counted over all rows, one after the other.
    """
    ends = [accumulate((*row, width - sum(row))) for row in rows]
    starts = (number * width + end for number, row in enumerate(ends) for end in row)
    return torch.tensor(sorted({0, *starts}), dtype=torch.int32)


def choose_bins(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """Return the cheapest bins for the rows of a batch, and the length to pad them to."""
    candidates = []
    for capacity in CAPACITIES:
        bins = best_fit(lengths, int(capacity * max(lengths)))
        longest = max(sum(lengths[row] for row in rows) for rows in bins)
        candidates.append((bins, round_up(longest, MULTIPLE)))
    return min(candidates, key=lambda each: cost(len(each[0]), each[1]))


def cost(num_rows: int, length: int) -> float:
    """Return what rows of one length cost a model, in tokens without attention."""
    return num_rows * length * (1 + length / LONG)


def plan(lengths: Sequence[int], width: int) -> Plan | None:
    """Return how to pack rows padded on the right to a `width`, or None if it does not pay."""
    bins, packed_length = choose_bins(lengths)
    if cost(len(bins), packed_length) > MAX_RELATIVE_COST * cost(len(lengths), width):
        return None
    packed = np.zeros((len(bins), packed_length), dtype=np.int64)
    unpacked = np.zeros((len(lengths), width), dtype=np.int64)
    for number, rows in enumerate(bins):
        start = 0
        for row in rows:
            positions = np.arange(lengths[row])
            packed[number, start : start + lengths[row]] = row * width + positions
            unpacked[row, : lengths[row]] = number * packed_length + start + positions
            start += lengths[row]
    bounds = segment_bounds([[lengths[row] for row in rows] for rows in bins], packed_length)
    return torch.from_numpy(packed), torch.from_numpy(unpacked), bounds


def accept_plans(body: torch.nn.Module) -> None:
    """Let the body of a model pack its batch where its model is called with a `plan`.

    transformers' heads pass keywords that they do not know on to the body. Heads, labels and losses
    see the padded batch, whose states at padding are meaningless.
    """
    # Before the hook that leaves masks out, which then sees the packed rows
    body.register_forward_pre_hook(_pack, with_kwargs=True, prepend=True)
    body.register_forward_hook(_unpack, with_kwargs=True)


def _pack(
    body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pack the tokens; positions that begin again isolate rows from each other."""
    if kwargs.get("plan") is None:
        return None
    packed, _, bounds = kwargs["plan"]
    padded = args[0] if args else kwargs["input_ids"]
    inputs = {
        "input_ids": padded.flatten()[packed],
        "position_ids": packed % padded.shape[1],
        "attention_mask": None,
    }
    # Padding is a segment, too; its states are not used
    return (), kwargs | inputs | flash_options(bounds, packed.shape[1])


def _unpack(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Unpack the last hidden states."""
    if kwargs.get("plan") is None:
        return None
    _, unpacked, _ = kwargs["plan"]
    states = output.last_hidden_state.flatten(0, 1).index_select(0, unpacked.flatten())
    output.last_hidden_state = states.unflatten(0, unpacked.shape)
    return output


def flash_options(bounds: torch.Tensor, longest: int) -> dict[str, Any]:
    """Return the bounds of segments by transformers' names; no segment is longer than `longest`."""
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return lengths | {"max_length_q": longest, "max_length_k": longest}


@dataclass(frozen=True)
class WithPlan:
    """A collator that adds the plan of a batch that pays to be packed."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a padded batch, with its plan if it has one."""
        inputs = self.collate(rows)
        how = plan([len(row["input_ids"]) for row in rows], inputs["input_ids"].shape[1])
        return inputs if how is None else inputs | {"plan": how}


@dataclass(frozen=True)
class WithBounds:
    """A collator that adds the bounds of the documents of packed blocks."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of blocks, with the bounds of their documents."""
        inputs = self.collate(rows)
        width = inputs["input_ids"].shape[1]
        bounds = segment_bounds([row["seq_lengths"] for row in rows], width)
        return inputs | flash_options(bounds, width)
