"""Rows that stay on disk: a sequence that holds one chunk of them in memory.

Imports neither numpy nor pyarrow at the top: recipes import this.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from pipelines.parallel import map_in_order

CHUNK_ROWS, CHUNK_CHARACTERS = 1000, 2**22  # of a chunk, whichever is reached first
JSON = "json"
"""Name of the one column of a chunk whose rows are a JSON array, its only value."""

Made = TypeVar("Made")


class Chunks(Protocol):
    """Rows in chunks, which can be read in any order."""

    @property
    def starts(self) -> Sequence[int]:
        """Number of the first row of each chunk, and, last, the number of all rows."""
        ...

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all rows."""
        ...

    def read(self, chunk: int) -> list[dict[str, Any]]:
        """Return the rows of a chunk."""
        ...


class RowsOnDisk(Sequence[dict[str, Any]]):
    """Rows of which one chunk at a time is in memory; `key` identifies all rows of `chunks`.

    `indices` chooses some of them. Where they are known already, `sha256` is
    `Examples.fingerprint()`, `label_counts` has the number of rows with each label, and `facts`
    what `data.row_facts` knows of each row.
    """

    def __init__(
        self,
        chunks: Chunks,
        key: str,
        indices: array[int] | None = None,
        sha256: str | None = None,
        label_counts: dict[str, int] | None = None,
    ):
        self.chunks, self.key, self.indices = chunks, key, indices
        self.sha256, self.label_counts = sha256, label_counts
        self.facts: Mapping[str, Sequence[Any]] | None = None
        self._chunk, self._rows = -1, list[dict[str, Any]]()
        self.advance: Callable[[int], None] | None = None

    def __len__(self) -> int:
        return self.chunks.starts[-1] if self.indices is None else len(self.indices)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises IndexError, and counts from the end
        return self._read(number if self.indices is None else self.indices[number])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.indices is None:
            for chunk in range(len(self.chunks.starts) - 1):
                yield from self.chunks.read(chunk)
        else:
            yield from map(self._read, self.indices)

    @cached_property
    def first(self) -> dict[str, Any]:
        """Return the first row, which stays in memory."""
        return next(iter(self))

    def parts(self) -> Iterator[range]:
        """Yield the positions of all rows, those of each chunk together."""
        starts = self.chunks.starts
        if self.indices is None:
            yield from (range(*each) for each in pairwise(starts))
            return
        begin = 0
        for _, numbers in groupby(self.indices, lambda number: bisect_right(starts, number)):
            end = begin + sum(1 for _ in numbers)
            yield range(begin, end)
            begin = end

    @property
    def num_bytes(self) -> int:
        """Return about how many bytes the rows have."""
        return self.chunks.num_bytes * len(self) // max(1, self.chunks.starts[-1])

    def _read(self, number: int) -> dict[str, Any]:
        """Return a row by its number in `chunks`, of which the latest chunk is kept."""
        starts, chunk = self.chunks.starts, self._chunk
        if chunk < 0 or not starts[chunk] <= number < starts[chunk + 1]:
            chunk = bisect_right(starts, number) - 1
            self._chunk, self._rows = chunk, self.chunks.read(chunk)
        return self._rows[number - starts[chunk]]

    def select(self, indices: Iterable[int]) -> RowsOnDisk:
        """Return some of the rows."""
        chosen = array("q", indices)
        numbers = chosen
        if self.indices is not None:
            numbers = array("q", map(self.indices.__getitem__, chosen))
        rows = RowsOnDisk(self.chunks, self.key, numbers)
        if self.facts is not None:
            rows.facts = {
                name: [*map(values.__getitem__, chosen)] for name, values in self.facts.items()
            }
        return rows

    def with_facts(self, facts: Mapping[str, Sequence[Any]]) -> RowsOnDisk:
        """Return the same rows, of which more is known."""
        rows = copy(self)
        rows.facts = facts
        return rows

    def watched(self, advance: Callable[[int], None]) -> RowsOnDisk:
        """Return the same rows; `map_rows` tells `advance` how many of them are done."""
        rows = copy(self)
        rows.advance = advance
        return rows


def map_rows(make: Callable[[range], Made], rows: Sequence[dict[str, Any]]) -> Iterator[Made]:
    """Yield what `make` returns for the positions of some rows at a time, in order.

    Rows on disk are read in several processes, whose results are pickled; others in this one.
    """
    if not isinstance(rows, RowsOnDisk):
        starts = range(0, len(rows), CHUNK_ROWS)
        yield from (make(range(len(rows))[start : start + CHUNK_ROWS]) for start in starts)
        return
    parts = [*rows.parts()]
    for part, made in zip(parts, map_in_order(make, parts), strict=True):
        if rows.advance is not None:
            rows.advance(part.stop)
        yield made


@dataclass(frozen=True)
class ChunkFile:
    """Chunks in one file, each a small Arrow stream of its own, so that their columns may differ.

    `offsets` are the bytes at which chunks begin, and the size of the file.
    """

    path: Path
    offsets: Sequence[int]
    starts: Sequence[int]

    @property
    def num_bytes(self) -> int:
        """Return the size of the file."""
        return self.offsets[-1]

    def read(self, chunk: int) -> list[dict[str, Any]]:
        """Return the rows of a chunk."""
        import pyarrow

        start, end = self.offsets[chunk : chunk + 2]
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            content = file.read(end - start)
        batch = pyarrow.ipc.open_stream(pyarrow.py_buffer(content)).read_next_batch()
        if batch.schema.metadata and JSON.encode() in batch.schema.metadata:
            return json.loads(batch.column(0)[0].as_py())  # type: ignore[no-any-return]
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows


def row_text(row: dict[str, Any]) -> str:
    """Return a row of values that JSON has, as it is stored."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


class ChunkFileWriter:
    """Writes rows to a ChunkFile: JSON-like ones, or batches of Arrow as they are."""

    def __init__(self, path: Path):
        self.path = path
        self.file = path.open("wb")
        self.offsets, self.starts = array("q", [0]), array("q", [0])
        self._texts: list[str] = []
        self._size = 0

    def write(self, row: dict[str, Any]) -> None:
        """Write a row of values that JSON has."""
        self.write_text(row_text(row))

    def write_text(self, text: str) -> None:
        """Write a row from its `row_text`."""
        self._texts.append(text)
        self._size += len(self._texts[-1])
        if len(self._texts) >= CHUNK_ROWS or self._size >= CHUNK_CHARACTERS:
            self._flush()

    def write_batch(self, batch: Any) -> None:
        """Write a RecordBatch, in chunks of about the same number of rows."""
        self._flush()
        num_chunks = max(1, batch.nbytes // CHUNK_CHARACTERS)
        size = max(1, -(-len(batch) // num_chunks))
        for start in range(0, len(batch), size):
            part = batch.slice(start, size)
            self._append(part, len(part))

    def close(self) -> ChunkFile:
        """Write what is left, and return the file to read."""
        self._flush()
        self.file.close()
        return ChunkFile(self.path, self.offsets, self.starts)

    def _flush(self) -> None:
        """Write the JSON rows that were held back."""
        if not self._texts:
            return
        import pyarrow

        schema = pyarrow.schema([(JSON, pyarrow.large_string())], metadata={JSON: "1"})
        rows = [f"[{','.join(self._texts)}]"]
        self._append(pyarrow.record_batch([rows], schema=schema), len(self._texts))
        self._texts, self._size = [], 0

    def _append(self, batch: Any, num_rows: int) -> None:
        """Write a chunk."""
        import pyarrow

        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        self.file.write(sink.getvalue())
        self.offsets.append(self.file.tell())
        self.starts.append(self.starts[-1] + num_rows)


class HubChunks:
    """The rows of a `datasets.Dataset`, which are on disk already."""

    def __init__(self, dataset: Any):
        self.dataset = dataset.with_format("arrow")
        self.starts = [*range(0, len(dataset), CHUNK_ROWS), len(dataset)]
        self.num_bytes = int(dataset.data.nbytes)

    def read(self, chunk: int) -> list[dict[str, Any]]:
        """Return the rows of a chunk."""
        start, end = self.starts[chunk : chunk + 2]
        rows: list[dict[str, Any]] = self.dataset[start:end].to_pylist()
        return rows
