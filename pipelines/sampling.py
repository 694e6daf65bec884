"""The order of rows: anew each epoch, the same on every process, batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL = 50  # batches whose rows are sorted together; more would leave less to chance


class RowOrder(Sampler[int]):
    """Draw all rows, in an order that follows from seed and epoch alone.

    transformers' LengthGroupedSampler draws from the generator of the process, so that its order
    hangs on what dropout has drawn before, on each process by itself.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        seed: int,
        epoch: Callable[[], int],
        lengths: Sequence[int] | None = None,
        batch_size: int = 1,
    ):
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = epoch
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch()])
        rows = generator.permutation(self.num_rows)
        if self.lengths is not None:
            rows = group_by_length(rows, self.lengths, self.batch_size, generator)
        yield from rows.tolist()


def group_by_length(
    rows: np.ndarray, lengths: np.ndarray, batch_size: int, generator: np.random.Generator
) -> np.ndarray:
    """Return shuffled rows in batches of similar length, the batches shuffled.

    Rows are sorted within pools of batches. The batch with the longest row comes first, so that
    memory runs out at once or not at all; what fills no batch comes last.
    """
    num_batches = len(rows) // batch_size
    if num_batches == 0:
        return rows
    full, rest = np.split(rows, [num_batches * batch_size])
    pool = batch_size * max(1, min(POOL, num_batches // 4))
    pools = np.split(full, range(pool, len(full), pool))
    ordered = np.concatenate([part[lengths[part].argsort(kind="stable")] for part in pools])
    batches = generator.permutation(ordered.reshape(num_batches, batch_size))
    longest = lengths[batches].max(1).argmax()
    batches[[0, longest]] = batches[[longest, 0]]
    return np.concatenate([batches.ravel(), rest])
