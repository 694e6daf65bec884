"""Read local files once: later runs find their rows on disk."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.data.load import LARGE, RawSplits, load_splits, read_into_memory
from pipelines.data.readers import read_batches
from pipelines.data.rows import (
    Batch,
    Examples,
    LineNumbers,
    Rejected,
    Unreadable,
    file_and_line,
)
from pipelines.data.rows_on_disk import ChunkFile, ChunkFileWriter, RowsOnDisk, row_text
from pipelines.data.source import DatasetSource
from pipelines.data.stream import origin_of
from pipelines.errors import DataError
from pipelines.parallel import map_in_order
from pipelines.preparing.store import Store
from pipelines.results.files import sha256

ROWS, INDEX, LINES, FILES = "rows.arrows", "rows.json", "lines.int64", "files.int64"


def load_prepared(source: DatasetSource, store: Store) -> RawSplits:
    """Read all rows of every split as `load_splits` does, large files through the store."""
    return load_splits(source, partial(read_through, store))


def read_through(store: Store, files: tuple[Path, ...]) -> Examples:
    """Return the rows of a split's files; those of large files stay on disk.

    The content of the files decides on what is found: it is hashed at each start.
    """
    if not all(file.is_file() for file in files):
        return read_into_memory(files)  # a pipe, or what the reader has a message for
    try:
        num_bytes = sum(file.stat().st_size for file in files)
        key = {"files": [[file.name, sha256(file)] for file in files]}
    except OSError:
        return read_into_memory(files)
    if num_bytes < LARGE and not store.always and not store.has("rows", key):
        return read_into_memory(files)

    def build(folder: Path) -> None:
        with store.progress.phase("reading", f"reading {origin_of(files)} for the first time"):
            write_rows(folder, files)
        for file, (_, before) in zip(files, key["files"], strict=True):
            if sha256(file) != before:
                raise DataError(f"{file} has changed while it was read. Run it again.")

    return open_rows(store.folder("rows", key, build, num_bytes=num_bytes), files)


@dataclass(frozen=True)
class StoredBatch:
    """Some rows of a file, as texts or as a table, and the unreadable lines between them."""

    lines: array[int]
    """Of the rows that are stored."""
    last: int
    texts: list[str]
    table: Any
    """A RecordBatch, or None."""
    rejected: list[dict[str, Any]]


def to_store(batch: Batch) -> StoredBatch:
    """Parse a batch, in any process."""
    numbered = batch.rows()
    readable = [i for i, (_, row) in enumerate(numbered) if not isinstance(row, Unreadable)]
    rejected = [
        {"line": line, "reason": row.reason, "row": row.content}
        for line, row in numbered
        if isinstance(row, Unreadable)
    ]
    lines = array("q", [numbered[index][0] for index in readable])
    last = numbered[-1][0] if numbered else 0
    if batch.is_table:
        table = batch.content.take(readable) if rejected else batch.content
        return StoredBatch(lines, last, [], table, rejected)
    texts = [row_text(row) for _, row in numbered if isinstance(row, dict)]
    return StoredBatch(lines, last, texts, None, rejected)


def write_rows(folder: Path, files: tuple[Path, ...]) -> None:
    """Write the rows of a split's files, their lines, and the unreadable lines.

    Raise DataError if there are neither rows nor unreadable lines.
    """
    writer = ChunkFileWriter(folder / ROWS)
    lines, of_files, offsets = array("q"), array("q"), array("q")
    rejected: list[dict[str, Any]] = []
    last = 0
    for position, file in enumerate(files):
        offsets.append(last)
        for batch in map_in_order(to_store, read_batches(file)):
            last = max(last, offsets[-1] + batch.last)
            lines.extend(batch.lines)
            of_files.extend([position] * len(batch.lines))
            rejected += [each | {"file": position} for each in batch.rejected]
            for text in batch.texts:
                writer.write_text(text)
            if batch.table is not None:
                writer.write_batch(batch.table)
    chunks = writer.close()
    if not lines and not rejected:
        raise DataError(f"{origin_of(files)}: no rows.")
    content = {
        "offsets": [*chunks.offsets],
        "starts": [*chunks.starts],
        "files": [*offsets],
        "rejected": rejected,
    }
    (folder / INDEX).write_text(json.dumps(content, default=str))
    (folder / LINES).write_bytes(lines.tobytes())
    (folder / FILES).write_bytes(of_files.tobytes())


def open_rows(folder: Path, files: tuple[Path, ...]) -> Examples:
    """Return rows that `write_rows` has written, of files that may have moved since."""
    index = json.loads((folder / INDEX).read_text())
    lines, of_files = (array("q", (folder / name).read_bytes()) for name in (LINES, FILES))
    origin = origin_of(files)
    numbers = LineNumbers(lines, of_files, tuple(map(str, files)), array("q", index["files"]))
    rejected = []
    for each in index["rejected"]:
        number = numbers.number(each["line"], each["file"])
        file, line = file_and_line(origin, number)
        rejected.append(Rejected(origin, number, f"{file}:{line}", each["reason"], each["row"]))
    chunks = ChunkFile(folder / ROWS, index["offsets"], index["starts"])
    rows = RowsOnDisk(chunks, folder.name)
    return Examples(rows, origin, numbers, rejected=tuple(rejected))
