"""Rows that are read during training, and not held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pipelines.data.hub_datasets import hub_dataset
from pipelines.data.lanes import Block, Chunk, Cursor, Lanes
from pipelines.data.local_files import is_local, split_files
from pipelines.data.readers import read_files
from pipelines.data.row_reader import RowReader
from pipelines.data.rows import Numbered
from pipelines.data.shards import Part, shards_of
from pipelines.data.source import DatasetSource
from pipelines.data.validate import HINT, drop_unusable, raise_rejected, to_examples

FINGERPRINT = 2**23  # bytes of all files that a fingerprint is of
FINGERPRINT_OF_FILE = 2**20  # most bytes of each


@dataclass(frozen=True)
class Stream:
    """Rows that are read again at each iteration, in order, without the first `skip`.

    A row that `task` cannot use raises DataError, or is left out.
    """

    source: DatasetSource
    split: str
    skip: int = 0
    task: RowReader | None = None
    rejected: Path | None = None
    """File in which training lists the rows that it leaves out."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for chunk in self.chunks(1):
            yield from (row for _, row in chunk.rows)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield the rows of one pass, in order, without those of other sources."""
        origin, records = self.records()
        local = is_local(self.source)
        while some := list(islice(records, size)):
            examples = to_examples(some, origin, local)
            if self.task is not None:
                examples = drop_unusable(self.task, examples, None)
            if self.source.on_bad_row == "stop":
                raise_rejected(examples.rejected, HINT)
            yield Chunk([(0, row) for row in examples.rows], examples.rejected)

    def lanes(self, num_lanes: int, seed: int, chunk_size: int) -> Lanes:
        """Return the rows of all sources, as lanes without an end, in the order of a seed.

        Raise DataError if a source has no files or no rows.
        """
        assert self.task is not None
        source, others = self.source, self.source.mixed_with or ()
        own = Part.of(shards_of(source, self.split), self.skip, source.max_train_rows)
        mixed = [Part(shards_of(each.source, each.train_split)) for each in others]
        return Lanes(
            task=self.task,
            parts=(own, *mixed),
            weights=(source.weight or 1.0, *(each.weight for each in others)),
            num_lanes=num_lanes,
            seed=seed,
            chunk_size=source.shuffle_buffer_size or chunk_size,
            shuffle=source.shuffle_buffer_size is not None,
        )

    def fingerprint(self) -> str | None:
        """Return a hash of local files' sizes and starts; None for the Hub, by its commit."""
        sources = [(self.source, self.split)]
        sources += [(each.source, each.train_split) for each in self.source.mixed_with or ()]
        local = [each for each in sources if is_local(each[0])]
        files = [file for source, split in local for file in split_files(source, split)]
        if not files:
            return None
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as content:
                start = content.read(min(FINGERPRINT_OF_FILE, FINGERPRINT // len(files)))
                digest.update(str(file.stat().st_size).encode() + start)
        return digest.hexdigest()

    def records(self) -> tuple[str, Iterator[Numbered]]:
        """Return the rows' origin, and the rows with their numbers."""
        rows: Iterable[Numbered]
        if is_local(self.source):
            files = split_files(self.source, self.split)
            origin, rows = origin_of(files), read_files(files)
        else:
            origin = f"{self.source.path} {self.split}"
            rows = enumerate(hub_dataset(self.source, self.split, streaming=True))
        stop = self.source.max_train_rows
        return origin, islice(rows, self.skip, None if stop is None else self.skip + stop)


class BlockStream(Protocol):
    """Training rows that a task makes of a stream; see `tasks.causal_lm.PackedStream`."""

    @property
    def documents(self) -> Stream: ...
    def lanes(self, num_lanes: int, seed: int) -> Lanes: ...
    def blocks(self, lanes: Lanes, lane: int, cursor: Cursor) -> Iterator[Block]: ...


def origin_of(files: Sequence[Path]) -> str:
    """Return the file of a split, or the folder of its files, as a text."""
    return str(files[0] if len(files) == 1 else files[0].parent)
