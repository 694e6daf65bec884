"""Pad rows to a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]
Collator = Callable[[list[dict[str, Any]]], Batch]


def round_up(length: int, multiple: int) -> int:
    """Round a length up to a multiple."""
    return -(-length // multiple) * multiple


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int) -> torch.Tensor:
    """Return token ids, (rows, length); `multiple` divides the length."""
    import numpy as np
    import torch

    padded = np.full((len(rows), round_up(max(map(len, rows)), multiple)), value)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def pad_inputs(rows: list[dict[str, Any]], pad_token_id: int, multiple: int) -> Batch:
    """Pad `input_ids` on the right, with an attention mask.

    The mask comes from lengths, so that a true EOS, also the pad token, is not masked.
    """
    import torch

    ids = [row["input_ids"] for row in rows]
    inputs = pad_right(ids, pad_token_id, multiple)
    lengths = torch.tensor([[len(row)] for row in ids])
    positions = torch.arange(inputs.shape[1])
    return {"input_ids": inputs, "attention_mask": (positions < lengths).long()}


@dataclass(frozen=True)
class PaddingCollator:
    """Pad `input_ids` to a batch, and stack `labels`, if rows have any.

    Collators are dataclasses and not closures, so that DataLoader workers can unpickle them.
    """

    pad_token_id: int
    multiple: int = 1
    """Divides the length of every batch."""

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of some rows."""
        import numpy as np
        import torch

        inputs = pad_inputs(rows, self.pad_token_id, self.multiple)
        if "labels" in rows[0]:
            labels = [np.asarray(row["labels"]).tolist() for row in rows]
            inputs["labels"] = torch.tensor(labels)
        return inputs
