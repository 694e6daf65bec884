"""Read Parquet and Arrow files, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipelines.data.rows import Numbered, Unreadable, first_reason, strings
from pipelines.errors import DataError

BATCH_ROWS = 1000


def read_columnar(file: Path, stream: IO[bytes], name: str) -> Iterator[tuple[list[Numbered], Any]]:
    """Yield the rows of a Parquet or Arrow file, numbered from 1, with their RecordBatch.

    Raise DataError for a damaged file, and for a duplicated column.
    """
    import pyarrow

    number = 0
    try:
        schema, batches = _open(stream, name)
        columns = schema.names
        duplicates = sorted({column for column in columns if columns.count(column) > 1})
        if duplicates:
            raise DataError(f"{file}: column {duplicates[0]!r} is duplicated.")
        for batch in batches:
            rows: list[Numbered] = []
            for row in batch.to_pylist():
                number += 1
                reason = first_reason(strings(row))
                rows.append((number, row if reason is None else Unreadable(reason, row)))
            yield rows, batch
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: damaged {name} after row {number:,}: {error}") from None


def read_features(file: Path, stream: IO[bytes], name: str) -> Any:
    """Return the `datasets.Features` of a file.

    They have class names if `datasets` wrote the file.
    """
    import pyarrow
    from datasets import Features

    try:
        schema, _ = _open(stream, name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: damaged {name}: {error}") from None
    return Features.from_arrow_schema(schema)


def _open(stream: IO[bytes], name: str) -> tuple[Any, Iterator[Any]]:
    """Return the schema and the batches of a file."""
    if name == "Parquet":
        from pyarrow.parquet import ParquetFile

        file = ParquetFile(stream)
        return file.schema_arrow, file.iter_batches(BATCH_ROWS)
    from pyarrow import ipc

    if stream.read(6) == b"ARROW1":
        stream.seek(0)
        reader = ipc.open_file(stream)
        return reader.schema, map(reader.get_batch, range(reader.num_record_batches))
    stream.seek(0)  # as `datasets` caches and saves
    reader = ipc.open_stream(stream)
    return reader.schema, iter(reader)
