"""Read Parquet and Arrow files, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from pipelines.data.rows import Batch, Numbered, Place, Unreadable, first_reason, strings
from pipelines.errors import DataError

BATCH_ROWS = 1000


def read_columnar(
    file: Path, stream: IO[bytes], name: str, place: Place | None = None
) -> Iterator[tuple[Place | None, Batch]]:
    """Yield the rows of a Parquet or Arrow file in batches, numbered from 1.

    Before them is the place of a row group of Parquet, or of a batch of an Arrow file, that begins
    with them. They are those from `place` on. Raise DataError for a damaged file, and for a
    duplicated column.
    """
    number, first = (place.row, int(place.offset)) if place else (0, 0)
    with _damage_named(file, name, lambda: number):
        schema, batches = _open(stream, name, first)
        columns = schema.names
        duplicates = sorted({column for column in columns if columns.count(column) > 1})
        if duplicates:
            raise DataError(f"{file}: column {duplicates[0]!r} is duplicated.")
        for group, batch in batches:
            begin = None if group is None else Place(group, number, number)
            yield begin, Batch(partial(parse_table, file, name), number + 1, batch, is_table=True)
            number += len(batch)


def parse_table(file: Path, name: str, number: int, table: Any) -> list[Numbered]:
    """Return the rows of a RecordBatch, numbered from `number` on.

    Raise DataError where the file is damaged.
    """
    with _damage_named(file, name, lambda: number - 1):
        rows = table.to_pylist()
    reasons = (first_reason(strings(row)) for row in rows)
    return [
        (position, row if reason is None else Unreadable(reason, row))
        for position, (row, reason) in enumerate(zip(rows, reasons, strict=True), start=number)
    ]


@contextmanager
def _damage_named(file: Path, name: str, before: Callable[[], int]) -> Iterator[None]:
    """Turn errors of a damaged file into DataError, with the number of rows before them."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: damaged {name} after row {before():,}: {error}") from None


def read_features(file: Path, stream: IO[bytes], name: str) -> Any:
    """Return the `datasets.Features` of a file.

    They have class names if `datasets` wrote the file.
    """
    import pyarrow
    from datasets import Features

    try:
        schema, _ = _open(stream, name, 0)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: damaged {name}: {error}") from None
    return Features.from_arrow_schema(schema)


def _open(stream: IO[bytes], name: str, first: int) -> tuple[Any, Iterator[tuple[int | None, Any]]]:
    """Return the schema and the batches of a file, from a row group on.

    The first batch of a group comes with the number of the group, others with None.
    """
    if name == "Parquet":
        from pyarrow.parquet import ParquetFile

        file = ParquetFile(stream)
        return file.schema_arrow, _batches_of_groups(file, first)
    from pyarrow import ipc

    if stream.read(6) == b"ARROW1":
        stream.seek(0)
        reader = ipc.open_file(stream)
        groups = range(first, reader.num_record_batches)
        return reader.schema, ((group, reader.get_batch(group)) for group in groups)
    stream.seek(0)  # as `datasets` caches and saves
    reader = ipc.open_stream(stream)
    return reader.schema, ((None, batch) for batch in reader)


def _batches_of_groups(file: Any, first: int) -> Iterator[tuple[int | None, Any]]:
    """Yield the batches of a Parquet file, those that begin a row group with its number."""
    for group in range(first, file.num_row_groups):
        batches = file.iter_batches(BATCH_ROWS, row_groups=[group])
        yield from ((None if later else group, batch) for later, batch in enumerate(batches))
