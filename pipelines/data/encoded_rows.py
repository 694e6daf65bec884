"""Encoded rows: where a task puts them, in memory or in a file that is mapped into memory."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

Row = dict[str, Any]
T = TypeVar("T")
BATCH_ROWS, BATCH_BYTES = 1000, 2**24  # of a batch of the file; the rows are all that readers see
SMALL_VOCABULARY = 2**16
"""Tokens that fit two bytes."""


class RowSink(Protocol):
    """Takes encoded rows in their order."""

    def append(self, row: Row, /) -> None:
        """Take a row."""
        ...

    def close(self) -> Sequence[Row]:
        """Return all rows."""
        ...


Sinks = Callable[[str], RowSink]
"""Returns a sink for the rows of a table of this name, as in `EncodedSplit.tables`."""


@dataclass(frozen=True)
class EncodedSplit:
    """What a task makes of the rows of a split, in tables and JSON-like values."""

    tables: Mapping[str, Sequence[Row]]
    """Rows that were put into sinks, by the sinks' names; "rows" are those that a model reads."""
    report: dict[str, int]
    """Counts of what encoding did to the rows."""
    lengths: Sequence[int] = ()
    """Tokens of each row before truncation, if rows are truncated."""
    context: Any = None
    """What else the task has to know of the rows, as a JSON-like value."""

    @property
    def rows(self) -> Sequence[Row]:
        """Return the rows that a model reads."""
        return self.tables["rows"]


class MemorySink(list[Row]):
    """Keeps rows in a list."""

    def __init__(self, name: str):
        super().__init__()

    def close(self) -> list[Row]:
        """Return the list."""
        return self


class FileSink:
    """Writes rows to an Arrow file.

    Arrays and lists of integers become lists of 4 bytes an item. Token ids, whose columns' names
    end in `_ids`, have 2 bytes if `largest_id` fits them.
    """

    def __init__(self, path: Path, largest_id: int):
        import numpy as np

        self.path = path
        self.id_type = np.uint16 if largest_id < SMALL_VOCABULARY else np.uint32
        self._rows: list[Row] = []
        self._size = 0
        self._file = path.open("wb")
        self._stream: Any = None
        self._schema: Any = None

    def append(self, row: Row, /) -> None:
        """Take a row; all rows have the same columns."""
        self._rows.append(row)
        self._size += 4 * sum(len(each) for each in row.values() if hasattr(each, "__len__"))
        if len(self._rows) >= BATCH_ROWS or self._size >= BATCH_BYTES:
            self._flush()

    def close(self) -> EncodedRows:
        """Write what is left, and return the rows mapped into memory."""
        self._flush()
        if self._stream is not None:
            self._stream.close()
        self._file.close()
        return EncodedRows(self.path)

    def _flush(self) -> None:
        """Write a batch. The first one decides on the types of columns."""
        import pyarrow

        if not self._rows:
            return
        columns = {
            name: self._column(name, [row[name] for row in self._rows]) for name in self._rows[0]
        }
        if self._stream is None:
            self._schema = pyarrow.record_batch(columns).schema
            self._stream = pyarrow.ipc.new_stream(self._file, self._schema)
        self._stream.write_batch(pyarrow.record_batch(columns, schema=self._schema))
        self._rows, self._size = [], 0

    def _column(self, name: str, values: list[Any]) -> Any:
        """Return the values of a column as an Arrow array."""
        import numpy as np
        import pyarrow

        first = values[0]
        if not isinstance(first, list | np.ndarray) or any(
            isinstance(x, float | str) for x in first
        ):
            return pyarrow.array(values)
        offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
        items = np.concatenate(values).astype(self.id_type if name.endswith("_ids") else np.int32)
        return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(items))


class EncodedRows(Sequence[Row]):
    """The rows of a FileSink, mapped into memory; a copy in another process maps the same file.

    Lists of integers are int64 arrays, as tasks make them.
    """

    def __init__(self, path: Path):
        import pyarrow

        self.path = path
        self._batches: list[dict[str, Any]] = []
        self._starts = array("q", [0])
        if not path.stat().st_size:
            return
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            for batch in stream:
                columns = {name: read_column(batch.column(name)) for name in batch.schema.names}
                self._batches.append(columns)
                self._starts.append(self._starts[-1] + len(batch))

    def __reduce__(self) -> Any:
        return EncodedRows, (self.path,)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # raises IndexError, and counts from the end
        batch = bisect_right(self._starts, number) - 1
        place = number - self._starts[batch]
        return {name: read(place) for name, read in self._batches[batch].items()}

    def __iter__(self) -> Iterator[Row]:
        for batch, columns in enumerate(self._batches):
            for place in range(self._starts[batch + 1] - self._starts[batch]):
                yield {name: read(place) for name, read in columns.items()}


def read_column(column: Any) -> Callable[[int], Any]:
    """Return what reads one value of a batch's column."""
    import numpy as np
    import pyarrow

    kind = column.type
    if pyarrow.types.is_list(kind) and pyarrow.types.is_integer(kind.value_type):
        offsets, items = column.offsets.to_numpy(), column.values.to_numpy()
        return lambda row: items[offsets[row] : offsets[row + 1]].astype(np.int64)
    return lambda row: column[row].as_py()


class LazySequence(Sequence[T], Generic[T]):
    """Items that are made each time they are read, by a picklable function of their index."""

    def __init__(self, num_items: int, make: Callable[[int], T]):
        self.num_items, self.make = num_items, make

    def __len__(self) -> int:
        return self.num_items

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        numbers = range(self.num_items)[index]  # raises IndexError, and counts from the end
        return self.make(numbers) if isinstance(numbers, int) else list(map(self.make, numbers))
