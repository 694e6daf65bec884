"""The shards of a split: its files, or those of a dataset on the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from pipelines.data.hub_datasets import hub_dataset
from pipelines.data.local_files import is_local, split_files
from pipelines.data.readers import read_from
from pipelines.data.rows import Numbered, Place
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError

ROWS_TO_PLACE = 1000  # rows of the Hub from one place, where reading can begin again, to the next


@dataclass(frozen=True)
class FileShard:
    """A local file."""

    file: Path
    local: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return the file, for messages."""
        return str(self.file)

    def read(self, place: Place | None = None) -> Iterator[Numbered | Place]:
        """Yield the numbered rows from a place on, and places."""
        return read_from(self.file, place)


@dataclass(frozen=True)
class HubShard:
    """A shard of a `datasets.IterableDataset`."""

    dataset: Any
    index: int
    origin: str
    local: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Return the dataset, its split and the shard, for messages."""
        several = self.dataset.num_shards > 1
        return f"{self.origin} shard {self.index}" if several else self.origin

    def read(self, place: Place | None = None) -> Iterator[Numbered | Place]:
        """Yield the rows with their positions from a place on, and places."""
        shard = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.index)
        if place:
            shard.load_state_dict(place.offset)
        before = place.row if place else 0
        for number, row in zip(count(before), shard, strict=False):
            yield number, row
            if (num_rows := number + 1) % ROWS_TO_PLACE == 0:
                yield Place(shard.state_dict(), num_rows, num_rows)


Shard = FileShard | HubShard


def shards_of(source: DatasetSource, split: str) -> tuple[Shard, ...]:
    """Return the shards of a split, in order."""
    if is_local(source):
        return tuple(map(FileShard, split_files(source, split)))
    dataset, origin = hub_dataset(source, split, streaming=True), f"{source.path} {split}"
    return tuple(HubShard(dataset, index, origin) for index in range(dataset.num_shards))


@dataclass(frozen=True)
class Part:
    """The rows of shards, but for the first `begin` of the first one and from `end` of the last."""

    shards: tuple[Shard, ...]
    begin: int = 0
    end: int | None = None

    @classmethod
    def of(cls, shards: tuple[Shard, ...], skip: int, stop: int | None) -> Part:
        """Return the rows after the first `skip`, at most `stop`. Raise DataError for none."""
        first, begin = advance(shards, 0, 0, skip)
        last, end = (len(shards), 0) if stop is None else advance(shards, first, begin, stop)
        chosen = shards[first : last + 1] if end else shards[first:last]
        if not chosen:
            raise DataError(
                f"{shards[0].name}: no rows are left to train on after the first {skip:,}, which "
                "are the validation rows. Lower --task.dataset.max-eval-rows."
            )
        return cls(chosen, begin, end or None)

    def read(self, index: int, place: Place | None) -> Iterator[tuple[int, Numbered] | Place]:
        """Yield the rows of a shard from a place on, each with its position in it, and places."""
        begin = self.begin if index == 0 else 0
        end = self.end if index == len(self.shards) - 1 else None
        row = place.row if place else 0
        for item in self.shards[index].read(place):
            if isinstance(item, Place):
                yield item
                continue
            if row == end:
                return
            if row >= begin:
                yield row, item
            row += 1


def advance(shards: Sequence[Shard], first: int, row: int, num_rows: int) -> tuple[int, int]:
    """Return the shard, and the row in it, of the row that comes a number of rows after another.

    Where there is none, that is the beginning of a shard after the last one.
    """
    if num_rows == 0:
        return first, row
    left = num_rows
    for index in range(first, len(shards)):
        records = (each for each in shards[index].read() if not isinstance(each, Place))
        for position, _ in enumerate(records):
            if index == first and position < row:
                continue
            if left == 0:
                return index, position
            left -= 1
    return len(shards), 0
