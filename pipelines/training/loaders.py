"""What feeds a trainer: batches of rows that carry their numbers.

Imports no transformers: with the start method "spawn" each worker imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipelines.workers import worker_context

if TYPE_CHECKING:
    from transformers import TrainingArguments

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
ROW = "row"  # the key of a row's number, in a row and in a batch
TOKENS = "num_tokens"  # the key of the tokens of each row, in a batch


def numbered(dataset: Any) -> Any:
    """Return rows with their numbers, so that a step that fails can name its rows.

    Rows of a stream have no numbers.
    """
    return NumberedRows(dataset) if isinstance(dataset, Sized) else dataset


@dataclass(frozen=True)
class NumberedRows(Dataset[dict[str, Any]]):
    """Rows that get their numbers when they are read."""

    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[number] | {ROW: number}  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WithRowNumbers:
    """A collator that keeps the numbers of rows that have one, and counts their tokens."""

    collate: Collate
    count_tokens: Callable[[dict[str, Any]], int]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch, with (batch,) row numbers and (batch,) numbers of tokens."""
        inputs = self.collate(rows)
        inputs = inputs | {TOKENS: torch.tensor([self.count_tokens(row) for row in rows])}
        if ROW not in rows[0]:
            return inputs
        return inputs | {ROW: torch.tensor([row[ROW] for row in rows])}


def data_loader(
    arguments: TrainingArguments,
    dataset: Any,
    collate: Collate,
    *,
    batch_size: int,
    sampler: Sampler[int] | None = None,
) -> DataLoader[Any]:
    """Return a loader that the Trainer's accelerator has yet to prepare.

    Its workers, if it has any, start in Python's own way on this platform.
    """
    num_workers = arguments.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        multiprocessing_context=worker_context() if num_workers else None,
        pin_memory=arguments.dataloader_pin_memory,
    )


def sent(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device; the host does not wait for them on a GPU."""
    on_gpu = device.type == "cuda"

    def send(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return (value.pin_memory() if on_gpu else value).to(device, non_blocking=on_gpu)

    return {name: send(value) for name, value in batch.items()}
