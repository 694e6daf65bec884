"""The order of training rows: another one each epoch, the same on every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class RowOrder(Sampler[int]):
    """Draw all rows, in an order that follows from seed and epoch, not from what dropout drew.

    accelerate's SeedableRandomSampler does not serve. It adds seed and epoch, so that the second
    epoch of seed 1 is the first of seed 2; and it learns the epoch by `set_epoch`, which does not
    reach the sampler of a run of several processes that resumes in the middle of an epoch. `epoch`
    is therefore a question that is answered when the rows are drawn.
    """

    num_rows: int
    seed: int
    epoch: Callable[[], int]

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch()])
        yield from generator.permutation(self.num_rows).tolist()
