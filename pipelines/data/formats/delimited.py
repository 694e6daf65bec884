"""Read delimited text, and recover at the line after a bad quote.

A literal quote (an inch mark, say) can open a cell that swallows the rows up to the next quote: a
CSV parser returns a cell with line breaks. A record of several lines is treated as such an accident
if most of its lines, each parsed alone, are rows like the file's other rows. Then only the line
with the quote is lost, and reading continues at the next line.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.formats.dialects import SEPARATOR_LINE, Dialect, Header, read_header
from pipelines.data.formats.text_stream import TextLines
from pipelines.data.rows import Numbered, Place, Unreadable
from pipelines.errors import DataError

NUM_REFERENCES = 200  # rows that others are compared with
NUM_COMPARED = 100  # lines of one record that are compared with them
FEW = 5  # rows that are too few to show all values of a column
SWALLOWED = 1000  # lines after which an open quote is judged before it is closed
RECORDS_TO_PLACE = 5 * NUM_REFERENCES  # from one place, where reading can begin again, to the next
OPENED = "a quote opens a cell here"


def read_delimited(
    file: Path, lines: TextLines, dialect: Dialect, place: Place | None = None
) -> Iterator[Numbered | Place]:
    """Yield rows as text, so that `NA` stays `NA`, from a place on, and places.

    A row must have a cell for each column. Empty rows at the end, as Excel writes them, are left
    out.
    """
    records = Records(file, lines, dialect, place)
    blank: list[Numbered] = []
    for item in records:
        if isinstance(item, Place):
            if not blank:
                yield item
            continue
        number, cells = item
        row = cells if isinstance(cells, Unreadable) else records.header.row(cells)
        if isinstance(row, dict) and len(row) > 1 and not any(row.values()):
            blank.append((number, row))
            continue
        yield from blank
        blank.clear()
        yield number, row


class Records:
    """Numbered records of a delimited file, or the lines that were lost, and places.

    A place is NUM_REFERENCES rows back, so that a reader that begins there compares later rows with
    the same ones. Its offset is that of the file, with the number of rows that were read without an
    error after it.
    """

    def __init__(self, file: Path, lines: TextLines, dialect: Dialect, place: Place | None = None):
        self.dialect = dialect
        sample = lines.sample()
        self.lines = _Replay(lines)
        if sample and SEPARATOR_LINE.match(sample[0]):
            next(self.lines)
        self.reader = dialect.reader(self.lines)
        self.header = self._read_header(file)
        self.recent: deque[list[str]] = deque(maxlen=NUM_REFERENCES)
        self.quotes_well = False  # recent rows have line breaks or delimiters in quoted cells
        self.columns: list[_Column] | None = None  # of the recent rows, computed when needed
        self.early = [
            cells
            for cells in dialect.reader(sample[self.lines.number :], strict=False)
            if self.header.fits(cells)
        ][:NUM_REFERENCES]
        self.num_rows = self.num_trusted = 0
        self.begun: Place | None = None  # of the next place, with the rows that fit since
        self.num_fitting = 0
        if place:
            offset, self.num_trusted = place.offset
            self.num_rows = place.row
            self.lines.seek(offset, place.number)

    def _read_header(self, file: Path) -> Header:
        cells: list[str] | None = []
        while cells == []:
            self.lines.begin()
            try:
                cells = next(self.reader, None)
            except csv.Error as error:
                text = f"{file}:{self.lines.number}: {error}: a quote of the header is not closed."
                raise DataError(text) from None
        return Header(()) if cells is None else read_header(file, self.lines.number, cells)

    def __iter__(self) -> Iterator[tuple[int, list[str] | Unreadable] | Place]:
        for number, cells in self._records():
            self.num_rows += 1
            self.num_trusted -= 1
            yield number, cells
            if place := self._place(cells):
                yield place

    def _place(self, cells: list[str] | Unreadable) -> Place | None:
        """Return the place that enough rows have followed, after a record."""
        if isinstance(cells, Unreadable):
            self.begun = None
            return None
        if self.begun is None:
            due = self.num_rows % RECORDS_TO_PLACE == 0
            if due and (offset := self.lines.tell()) is not None:
                self.begun, self.num_fitting = Place(offset, self.lines.last, self.num_rows), 0
            return None
        self.num_fitting += self.header.fits(cells)
        if self.num_fitting < NUM_REFERENCES:
            return None
        begun, self.begun = self.begun, None
        return Place([begun.offset, self.num_rows - begun.row], begun.number, begun.row)

    def _records(self) -> Iterator[tuple[int, list[str] | Unreadable]]:
        lines = self.lines
        lines.interrupt = self._swallows_rows
        resyncing = False  # after text that belonged to a broken cell
        while True:
            lines.begin()
            error: csv.Error | None = None
            cells: list[str] = []
            try:
                cells = next(self.reader, [])
            except csv.Error as caught:
                error = caught
            if not lines.taken:
                return
            if error is None and not cells:
                continue
            if error is not None or (
                len(lines.taken) > 1 and self._swallows_rows(lines.taken, cells)
            ):
                resyncing = yield from self._recover(error)
                continue
            fits = self.header.fits(cells)
            if resyncing and len(lines.taken) == 1 and not (fits and self._resumes(cells)):
                yield lines.number, self._lost(lines.taken[0], resyncing=True)
                continue
            resyncing = False
            if fits:
                self.recent.append(cells)
                self.columns = None
            yield lines.number, cells

    def _recover(self, error: csv.Error | None) -> Generator[tuple[int, Unreadable], None, bool]:
        """Yield the lines that a bad quote loses.

        Return whether text of its cell may follow.
        """
        lines = self.lines
        first, num_lines = lines.number, len(lines.taken)
        if error is None:
            reason = (
                f"{OPENED} that closes in line {first + num_lines - 1}, but its lines are rows by "
                "themselves. To write a quote in a text, double it and quote the cell."
            )
        elif lines.exhausted(error):
            reason = f"{OPENED}, but {error}: a quote is not closed."
        elif num_lines > 1:
            reason = f"{OPENED}, but line {first + num_lines - 1} does not close it: {error}."
        else:
            reason = f"{error}."
        open_lines = lines.taken if error is None or lines.exhausted(error) else lines.taken[:-1]
        swallows_rows = error is None or self._swallows_rows(open_lines or lines.taken)
        yield first, Unreadable(reason, lines.taken[0].rstrip("\r\n"))
        if swallows_rows:
            lines.give_back(1)
            return False
        for offset, line in enumerate(open_lines[1:], start=1):
            if line.strip():
                yield first + offset, self._lost(line, resyncing=False)
        lines.give_back(max(1, len(open_lines)))
        return True

    def _lost(self, line: str, *, resyncing: bool) -> Unreadable:
        relation = "after" if resyncing else "within"
        return Unreadable(f"{relation} a cell whose quotes are broken.", line.rstrip("\r\n"))

    def _swallows_rows(self, lines: Sequence[str], cells: list[str] | None = None) -> bool:
        """Tell whether most lines of a record are rows, when parsed alone.

        The first line's begin or the last line's end of a well-formed record, whose `cells` are
        given, is the same in every such record: these lines prove nothing.
        """
        if self.num_trusted > 0:
            return False
        num_columns = self.header.width
        proof = list(lines[:NUM_COMPARED])
        opening = proof[0]
        well_formed = cells is not None and self.header.fits(cells)
        if cells is not None and well_formed:
            column = next((i for i, cell in enumerate(cells) if _has_line_break(cell)), 0)
            if column == 0 and len(proof) == len(lines):
                proof = proof[:-1]
            if column == num_columns - 1:
                proof = proof[1:]
            if num_columns < 2 or self._alone(lines[-1]) is None:
                return False
        while proof and not proof[-1].strip():  # as at the end of a file
            proof.pop()
        if not proof:
            return False
        parsed = [self._alone(line, opens=line is opening) for line in proof]
        rows = [cells for cells in parsed if cells is not None]
        if 3 * len(rows) < 2 * len(proof):
            return False
        columns = self._columns()
        alike = [cells for cells in rows if all(map(_Column.holds, columns, cells))]
        if well_formed and self.quotes_well and all(column.prose for column in columns):
            return len(alike) == len(proof) >= 3  # only the lines are evidence against the record
        return 3 * len(alike) >= 2 * len(proof) and any(
            all(map(_Column.knows, columns, cells)) for cells in alike
        )

    def _alone(self, line: str, *, opens: bool = False) -> list[str] | None:
        """Return a line's cells without quotes, or None for a part of a record.

        In a line that `opens` a cell, one quote at the begin of a cell is treated as text.
        """
        variants = [line]
        if opens:
            begin = rf'(?:^|{re.escape(self.dialect.delimiter)}) *(")'
            positions = [match.start(1) for match in re.finditer(begin, line)]
            variants = [line[:position] + line[position + 1 :] for position in positions]
        for variant in variants:
            try:
                cells = next(self.dialect.reader([variant]), [])
            except csv.Error:
                continue
            if cells and self.header.fits(cells):
                return [cell.replace('"', "") for cell in cells]
        return None

    def _resumes(self, cells: list[str]) -> bool:
        """Tell whether a record after a broken cell is a row like the others."""
        plain = not any('"' in cell for cell in cells)
        return plain and all(map(_Column.holds, self._columns(), cells))

    def _columns(self) -> list[_Column]:
        if self.columns is None:
            rows = [*dict.fromkeys(map(tuple, [*self.recent, *self.early]))]
            breaks = sum(any(map(_has_line_break, row)) for row in rows)
            self.quotes_well = (breaks >= FEW and breaks > len(rows) / 5) or any(
                self.dialect.delimiter in cell and not _has_line_break(cell)
                for row in rows
                for cell in row
            )
            self.columns = [
                _Column.of([row[index] for row in rows if not _has_line_break(row[index])])
                for index in range(self.header.width)
            ]
        return self.columns


@dataclass(frozen=True)
class _Column:
    """Statistics of a column's cells, except those with line breaks.

    Cells without line breaks are genuine even in a record that has swallowed rows.
    """

    values: frozenset[str]
    num_rows: int
    spaced: bool
    """Some cells begin with a space."""
    prose: bool
    """Some cells hold more than three words, so that any characters may be in others."""
    lengths: tuple[int, int]
    characters: frozenset[str]

    @classmethod
    def of(cls, cells: list[str]) -> _Column:
        """Return the statistics of cells, without their quotes."""
        cells = [cell.replace('"', "") for cell in cells]
        lengths = [len(cell) for cell in cells] or [0]
        prose = not cells or any(cell.strip().count(" ") > 2 for cell in cells)
        slack = 2 if len(cells) >= FEW and not prose else 4
        return cls(
            frozenset(cells),
            len(cells),
            any(cell[:1].isspace() for cell in cells),
            prose,
            (min(lengths) // slack, max(lengths) * slack),
            frozenset(" _-").union(*map(_character_classes, cells)),
        )

    def holds(self, cell: str) -> bool:
        """Tell whether a cell looks like those of the column."""
        if cell[:1].isspace() and not self.spaced:
            return False
        if not cell or not self.num_rows:
            return "" in self.values or bool(cell)
        shortest, longest = self.lengths
        fits = shortest <= len(cell) <= longest
        return fits and (self.prose or _character_classes(cell) <= self.characters)

    def knows(self, cell: str) -> bool:
        """Tell whether a cell is a value of the column, if the column has few values."""
        few = self.num_rows >= FEW and len(self.values) <= self.num_rows / 2
        return self.prose or not few or cell in self.values


def _character_classes(text: str) -> frozenset[str]:
    """Return "a" for letters, "0" for digits, and every other character of a text."""
    return frozenset("a" if c.isalpha() else "0" if c.isdecimal() else c for c in text)


def _has_line_break(cell: str) -> bool:
    return "\n" in cell or "\r" in cell


class _Replay(Iterator[str]):
    """Lines for a csv reader that can be given back after it consumed them."""

    def __init__(self, lines: TextLines):
        self.lines = lines
        self.given_back: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 1
        self.interrupt: Callable[[list[str]], bool] | None = None

    def __next__(self) -> str:
        if len(self.taken) == SWALLOWED and self.interrupt and self.interrupt(self.taken):
            raise csv.Error("unexpected end of data after 1,000 lines")
        line = self.given_back.popleft() if self.given_back else next(self.lines)
        self.taken.append(line)
        return line

    def begin(self) -> None:
        """Begin a record: set `number` to that of its first line."""
        self.number += len(self.taken)
        self.taken = []

    @property
    def last(self) -> int:
        """Return the number of the last line of the record."""
        return self.number + len(self.taken) - 1

    def tell(self) -> int | None:
        """Return the offset of the next line, or None where it cannot be known."""
        return None if self.given_back else self.lines.tell()

    def seek(self, offset: int, number: int) -> None:
        """Continue at an offset, after a number of lines."""
        self.lines.seek(offset)
        self.number, self.taken = number + 1, []

    def give_back(self, num_kept: int) -> None:
        """Give back the lines of the record after the first `num_kept`."""
        self.given_back.extendleft(reversed(self.taken[num_kept:]))
        del self.taken[num_kept:]

    @staticmethod
    def exhausted(error: csv.Error) -> bool:
        """Tell whether the reader reached the end of the file within quotes."""
        return "unexpected end of data" in str(error)
