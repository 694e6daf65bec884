"""Rows of a split with their locations, and lines that are unreadable."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, overload

from pipelines.data.rows_on_disk import RowsOnDisk

NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Unreadable:
    """A line that cannot be read as a row, and the reason."""

    reason: str
    content: Any


Numbered = tuple[int, dict[str, Any] | Unreadable]


@dataclass(frozen=True)
class Batch:
    """Some rows of a file as they were read, which another process may parse."""

    parse: Callable[[int, Any], list[Numbered]]
    number: int
    """Line or position of the first."""
    content: Any
    is_table: bool = False
    """Whether the content is a RecordBatch of the rows."""

    def rows(self) -> list[Numbered]:
        """Return the numbered rows."""
        return self.parse(self.number, self.content)


@dataclass(frozen=True)
class Place:
    """Where the reading of a file can begin again, without what is before it."""

    offset: Any
    """Bytes, a row group or whatever else the format is read from; a JSON value."""
    number: int
    """Lines or rows before it."""
    row: int
    """Rows before it, unreadable ones included."""


class Line(int):
    """A row's number in a split of several files, with its file and its line there.

    The number itself counts through all files, so that the rows of a split stay in order.
    """

    file: str
    line: int

    def __new__(cls, number: int, file: str = "", line: int = 0) -> Line:
        self = super().__new__(cls, number)
        self.file, self.line = file, line
        return self


@dataclass(frozen=True)
class LineNumbers(Sequence[int]):
    """The lines of rows in their files; with several files they are `Line`s.

    `lines` are those in each row's own file, `files` the positions of these in `names`. `offsets`
    are added to the lines of each file, so that the numbers of a split ascend.
    """

    lines: array[int]
    files: array[int]
    names: tuple[str, ...]
    offsets: array[int]

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.number(self.lines[index], self.files[index])

    def number(self, line: int, file: int) -> int:
        """Return the number of a line of a file."""
        if len(self.names) == 1:
            return line
        return Line(self.offsets[file] + line, self.names[file], line)

    def select(self, indices: Iterable[int]) -> LineNumbers:
        """Return the lines of some rows."""
        chosen = array("q", indices)
        lines = array("q", map(self.lines.__getitem__, chosen))
        files = array("q", map(self.files.__getitem__, chosen))
        return LineNumbers(lines, files, self.names, self.offsets)


def file_and_line(origin: str, number: int) -> tuple[str, int]:
    """Return the file and the line of a row whose split was read from `origin`."""
    return (number.file, number.line) if isinstance(number, Line) else (origin, number)


def why_not_text(text: str) -> str | None:
    """Explain why a string cannot be tokenised, or return None."""
    match = NO_TEXT.search(text)
    if match is None:
        return None
    code = ord(match[0])
    if code == 0:
        return "a NUL character."
    if 0xDC80 <= code <= 0xDCFF:  # where `surrogateescape` puts a byte
        return f"not UTF-8: byte 0x{code - 0xDC00:02x}. Save the file as UTF-8."
    return f"half a surrogate pair, U+{code:04X}."


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON-like value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from strings(item)


def first_reason(texts: Iterator[str] | list[str]) -> str | None:
    """Explain why the first unusable string cannot be tokenised, or return None."""
    return next(filter(None, map(why_not_text, texts)), None)


def hash_of(row: dict[str, Any]) -> bytes:
    """Return a hash of a row's content."""
    line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(line.encode()).digest()


@dataclass(frozen=True)
class Rejected:
    """An unusable row: its location and content, and the reason."""

    file: str
    line: int
    location: str
    reason: str
    row: Any


@dataclass(frozen=True)
class Examples:
    """Rows of one split, with the location of each."""

    rows: Sequence[dict[str, Any]] | Iterable[dict[str, Any]]
    origin: str
    lines: Sequence[int] | None = None
    label_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names in the order of their ids, of each column that is a ClassLabel."""
    numbers: Sequence[int] | None = None
    """Positions in the split of rows without lines, if some rows were left out."""
    rejected: tuple[Rejected, ...] = ()
    """Unusable rows of the same origin."""
    total: int | None = None
    """Number of rows that these were drawn from, if there is a maximum."""

    @property
    def streamed(self) -> bool:
        """Whether the rows are read again at each iteration, and not held in memory."""
        return not isinstance(self.rows, Sequence)

    @property
    def num_rows(self) -> int:
        """Return the number of rows, which a stream does not have."""
        assert isinstance(self.rows, Sized)
        return len(self.rows)

    @property
    def sequence(self) -> Sequence[dict[str, Any]]:
        """Return the rows, which are not streamed."""
        assert isinstance(self.rows, Sequence)
        return self.rows

    @property
    def first_row(self) -> dict[str, Any]:
        """Return the first row."""
        return self.rows.first if isinstance(self.rows, RowsOnDisk) else next(iter(self.rows))

    def at(self, positions: range) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows at some positions, each after its position."""
        rows = self.sequence
        for index in positions:
            yield index, rows[index]

    def row_number(self, index: int) -> int:
        """Return the line of a row, or its number in the split."""
        numbers = self.numbers if self.lines is None else self.lines
        return index if numbers is None else numbers[index]

    def locate(self, index: int) -> str:
        """Return a row's file and line, or its split and position, as a text."""
        file, number = file_and_line(self.origin, self.row_number(index))
        return f"{file}{' row ' if self.lines is None else ':'}{number}"

    def select(self, indices: Iterable[int]) -> Examples:
        """Return some of the rows, with their locations."""
        chosen = array("q", indices)
        lines, numbers = self.lines, self.numbers
        if isinstance(lines, LineNumbers):
            lines = lines.select(chosen)
        elif lines is not None:
            lines = [lines[index] for index in chosen]
        else:
            numbers = array("q", map(self.row_number, chosen))
        if isinstance(self.rows, RowsOnDisk):
            return replace(self, rows=self.rows.select(chosen), lines=lines, numbers=numbers)
        assert isinstance(self.rows, list)
        rows = [self.rows[index] for index in chosen]
        return replace(self, rows=rows, lines=lines, numbers=numbers)

    def hashes(self) -> Iterator[bytes]:
        """Yield a hash of each row's content."""
        if isinstance(self.rows, RowsOnDisk) and self.rows.facts is not None:
            yield from self.rows.facts["hashes"]
        else:
            yield from map(hash_of, self.rows)

    def fingerprint(self) -> str:
        """Return a hash of the rows, to tell whether two scores are of the same data."""
        if isinstance(self.rows, RowsOnDisk) and self.rows.sha256 is not None:
            return self.rows.sha256
        digest = hashlib.sha256()
        for row in self.hashes():
            digest.update(row)
        return digest.hexdigest()
