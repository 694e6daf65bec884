"""The order of rows: anew each epoch, the same on every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class RowOrder(Sampler[int]):
    """Draw all rows, in an order that follows from seed and epoch, not from what dropout drew."""

    def __init__(self, num_rows: int, *, seed: int, epoch: Callable[[], int]):
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch()])
        yield from generator.permutation(self.num_rows).tolist()
