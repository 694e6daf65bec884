"""Detect the dialect of delimited text: its delimiter, its quotes, and its header."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.data.rows import Unreadable, first_reason
from pipelines.errors import DataError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
SEPARATOR_LINE = re.compile(r"sep=(.)\s*$", re.IGNORECASE)  # Excel writes it before the header


@dataclass(frozen=True)
class Dialect:
    """How a delimited file separates and quotes its cells."""

    delimiter: str = ","
    quotes: bool = True
    backslash: bool = False
    """A backslash escapes a quote."""
    skip_space: bool = False
    """Spaces after a delimiter do not belong to the cell."""

    def reader(self, lines: Iterable[str], *, strict: bool = True) -> Iterator[list[str]]:
        """Return a csv reader; `lines` may yield lines again after an error."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            escapechar="\\" if self.backslash else None,
            skipinitialspace=self.skip_space,
            strict=strict,
        )

    def notes(self, hint: str) -> Iterator[str]:
        """Yield the differences from plain CSV with the delimiter of the suffix."""
        if self.delimiter != hint:
            name = DELIMITERS.get(self.delimiter, repr(self.delimiter))
            yield f"{name}-separated"
        if not self.quotes:
            yield "with literal quotes"
        if self.backslash:
            yield "with backslash-escaped quotes"
        if self.skip_space:
            yield "without the spaces after delimiters"


@dataclass(frozen=True)
class Header:
    """Column names; a column without a name must be empty."""

    cells: tuple[str, ...]

    @cached_property
    def width(self) -> int:
        """The number of columns up to the last that has a name."""
        return max((i for i, cell in enumerate(self.cells, start=1) if cell), default=0)

    @cached_property
    def all_named(self) -> bool:
        """Whether every column has a name."""
        return all(self.cells)

    def fits(self, cells: Sequence[str]) -> bool:
        """Tell whether a record has a cell for each column, and nothing beyond them."""
        num_cells = len(cells)
        return num_cells == self.width or (num_cells > self.width and not any(cells[self.width :]))

    def row(self, cells: Sequence[str]) -> dict[str, Any] | Unreadable:
        """Return a record as a row."""
        reason = first_reason(list(cells))
        if reason is not None:
            return Unreadable(reason, list(cells))
        if self.all_named and len(cells) == self.width:
            return dict(zip(self.cells, cells, strict=True))
        if not self.fits(cells) and len(cells) not in range(self.width, len(self.cells) + 1):
            reason = f"{len(cells)} cells, but the header has {len(self.cells)}."
            return Unreadable(reason, list(cells))
        row = {}
        for index, cell in enumerate(cells):
            name = self.cells[index] if index < self.width else ""
            if name or index == 0:  # pandas writes its index first, without a name
                row[name] = cell
            elif cell:
                text = f"cell {index + 1} holds {cell!r}, but the header has no name for it."
                return Unreadable(text, list(cells))
        return row


def read_header(file: Path, number: int, cells: list[str]) -> Header:
    """Return the column names.

    Raise DataError for duplicates, and if there are no names.
    """
    reason = first_reason(cells)
    duplicates = sorted({cell for cell in cells if cell and cells.count(cell) > 1})
    if duplicates:
        reason = f"column {duplicates[0]!r} is duplicated in the header."
    elif not any(cells):
        reason = "the header has no column names."
    if reason is not None:
        raise DataError(f"{file}:{number}: {reason}")
    return Header(tuple(cells))


def sniff(sample: list[str], hint: str) -> Dialect:
    """Detect the dialect in which most first records fit the header.

    `hint` is the usual delimiter of the suffix. It is preferred unless another one fits better.
    """
    csv.field_size_limit(sys.maxsize)
    if sample and (directive := SEPARATOR_LINE.match(sample[0])):
        hint = directive[1]
        return _sniff_quotes(Dialect(hint), sample[1:])
    hinted_first = sorted(DELIMITERS, key=lambda delimiter: delimiter != hint)
    for quotes in (True, False):  # False: for a quote that swallows the sample
        scores = {mark: agreement(Dialect(mark, quotes=quotes), sample) for mark in hinted_first}
        best = max(scores, key=lambda mark: scores[mark])
        if scores[best] > 0.5:
            return _sniff_quotes(Dialect(best), sample)
    return _sniff_quotes(Dialect(hint), sample)


def agreement(dialect: Dialect, sample: list[str]) -> float:
    """Return the fraction of records as long as a header of at least two columns."""
    records = [cells for cells in dialect.reader(sample, strict=False) if cells]
    header = Header(tuple(records[0])) if records else Header(())
    if header.width < 2:
        return 0.0
    records = records[1:-1] or records[1:]  # a sample may end within a record
    return sum(map(header.fits, records)) / len(records) if records else 1.0


def _sniff_quotes(dialect: Dialect, sample: list[str]) -> Dialect:
    """Add the quotes, backslashes and spaces of the sample to a dialect."""
    header = next(dialect.reader(sample, strict=False), [])
    if len(header) > 1 and all(cell.startswith(" ") and cell.strip() for cell in header[1:]):
        dialect = replace(dialect, skip_space=True)
    num_bad = _count_bad(dialect, sample)
    if not num_bad:
        return dialect
    if any('\\"' in line for line in sample):
        escaped = replace(dialect, backslash=True)
        if _count_bad(escaped, sample) < num_bad:
            return escaped
    if dialect.delimiter == "\t" and not any('""' in line for line in sample):
        literal = replace(dialect, quotes=False)
        if not _count_bad(literal, sample):
            return literal
    return dialect


def _count_bad(dialect: Dialect, sample: list[str]) -> int:
    """Return the number of records that are malformed or do not fit the header."""
    header: Header | None = None
    num_bad = 0
    reader = dialect.reader(sample)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return num_bad
        except csv.Error as error:
            num_bad += "unexpected end of data" not in str(error)
            continue
        if cells and header is None:
            header = Header(tuple(cells))
        elif cells and header is not None:
            num_bad += not header.fits(cells)
