"""Read rows from a file in the format that its content shows.

A suffix is a hint. Compression and columnar formats are detected by a file's first bytes, the
encoding by its byte order mark, JSON and delimited text by the first lines. `describe_format`
returns what the suffix does not tell.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import Any

from pipelines.data.formats.columnar import read_columnar, read_features
from pipelines.data.formats.delimited import read_delimited
from pipelines.data.formats.dialects import agreement, sniff
from pipelines.data.formats.json_rows import LINE_SUFFIXES, is_object, read_json, starts_json
from pipelines.data.formats.text_stream import (
    BUFFER,
    COMPRESSIONS,
    TextLines,
    binary_format,
    columnar_format,
    decode,
    open_bytes,
)
from pipelines.data.rows import (
    NO_TEXT,
    Batch,
    Line,
    Numbered,
    Place,
    Unreadable,
    strings,
    why_not_text,
)
from pipelines.data.rows_on_disk import CHUNK_CHARACTERS, CHUNK_ROWS
from pipelines.errors import DataError

TEXT_SUFFIXES = (*LINE_SUFFIXES, ".json", ".csv", ".tsv", ".tab", ".psv", ".txt")
COLUMNAR_SUFFIXES = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"}
COMPRESSED_SUFFIXES = tuple(compression.suffix for compression in COMPRESSIONS)
DELIMITED_SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
ACCEPTED = (
    f"{', '.join(TEXT_SUFFIXES)}, each also with {', '.join(COMPRESSED_SUFFIXES)}; "
    f"{', '.join(COLUMNAR_SUFFIXES)}"
)
USUAL = {  # formats that a suffix tells
    ".jsonl": ("JSON lines",),
    ".ndjson": ("JSON lines",),
    ".json": ("SQuAD", "a JSON array"),
}


@dataclass(frozen=True)
class Opened:
    """The rows of an open file, and notes on its format that its suffix does not tell.

    Formats whose rows can be parsed apart have them in `batches`, too.
    """

    rows: Iterator[Numbered | Place]
    notes: tuple[str, ...]
    batches: Iterator[Batch] | None = None


def read_records(file: Path) -> Iterator[Numbered]:
    """Yield line numbers and rows of a file, or Unreadable for a bad line.

    Rows of a JSON document, of Parquet and of Arrow are numbered by position. Raise DataError for
    a format without rows, and for a file that is damaged.
    """
    return (item for item in read_from(file) if not isinstance(item, Place))


def read_from(file: Path, place: Place | None = None) -> Iterator[Numbered | Place]:
    """Yield what `read_records` does, from a place of the file on, and further places.

    A place is where the next row begins, or a row before it. Compressed files, documents of JSON
    and Arrow streams have none.
    """
    with _opened(file, place) as opened:
        yield from opened.rows


def read_batches(file: Path) -> Iterator[Batch]:
    """Yield the rows of `read_records` in batches, parsed already where the format needs it."""
    with _opened(file) as opened:
        if opened.batches is not None:
            yield from opened.batches
            return
        rows, size = list[Numbered](), 0
        for item in opened.rows:
            if isinstance(item, Place):
                continue
            rows.append(item)
            size += sum(len(each) for each in strings(item[1])) if isinstance(item[1], dict) else 0
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_CHARACTERS:
                yield Batch(_parsed, rows[0][0], rows)
                rows, size = [], 0
        if rows:
            yield Batch(_parsed, rows[0][0], rows)


def _parsed(number: int, rows: list[Numbered]) -> list[Numbered]:
    """Return rows that were parsed while they were read."""
    return rows


def read_files(files: Sequence[Path]) -> Iterator[Numbered]:
    """Yield the numbered rows of a split's files.

    With several files, the numbers are `Line`s.
    """
    if len(files) == 1:
        yield from read_records(files[0])
        return
    last = 0
    for file in files:
        offset = last
        for number, row in read_records(file):
            last = offset + number
            yield Line(last, str(file), number), row


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and rows. Raise DataError at the first unreadable line."""
    for number, row in read_records(file):
        if isinstance(row, Unreadable):
            raise DataError(f"{file}:{number}: {row.reason}")
        yield number, row


def describe_format(file: Path) -> str | None:
    """Describe the detected format of a file, or return None if its suffix tells it."""
    if not file.is_file():
        return None  # a pipe can be read once
    with _opened(file) as opened:
        return f"{file}: read as {', '.join(opened.notes)}" if opened.notes else None


def features_of(file: Path) -> Any:
    """Return the `datasets.Features` of a Parquet or Arrow file, or None for another."""
    if not file.is_file():
        return None
    with _errors_named(file), open_bytes(file)[0] as stream:
        name = columnar_format(stream.peek(BUFFER))
        return None if name is None else read_features(file, stream, name)


def suffix_of(file: Path) -> str:
    """Return a file's suffix in lower case, without that of its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_accepted(file: Path) -> bool:
    """Tell whether a file's suffix is one of the accepted formats."""
    return suffix_of(file) in TEXT_SUFFIXES or file.suffix.lower() in COLUMNAR_SUFFIXES


@contextmanager
def _errors_named(file: Path) -> Iterator[None]:
    """Turn errors of reading and decoding a file into DataError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not {error.encoding.upper()}: {error.reason}.") from None
    except (EOFError, zlib.error, LZMAError) as error:
        raise DataError(f"{file}: damaged or incomplete compressed data: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}.") from None


@contextmanager
def _opened(file: Path, place: Place | None = None) -> Iterator[Opened]:
    """Open a file and detect its form; its rows begin at a place."""
    with _errors_named(file):
        stream, compression = open_bytes(file)
        with stream:
            suffix, notes = suffix_of(file), []
            if compression is not None and file.suffix.lower() != compression.suffix:
                notes.append(compression.name)
            head = stream.peek(BUFFER)
            columnar = columnar_format(head)
            if columnar is not None:
                if compression is not None:
                    raise DataError(f"{file}: compressed {columnar}; decompress it.")
                if COLUMNAR_SUFFIXES.get(suffix) != columnar:
                    notes.append(columnar)
                parts = read_columnar(file, stream, columnar, place)
                tables = (batch for _, batch in parts)
                yield Opened(_flat(parts), tuple(notes), tables)
                return
            other = binary_format(head)
            if other is not None:
                raise DataError(f"{file}: {other}. Rows are read from {ACCEPTED}.")
            lines, encoding = decode(stream, seekable=compression is None and stream.seekable())
            notes += [encoding] if encoding else []
            form, rows, batches = _read_text(file, lines, suffix, place)
            yield Opened(rows, (*notes, *form), batches)


def _flat(parts: Iterator[tuple[Place | None, Batch]]) -> Iterator[Numbered | Place]:
    """Yield the rows of a columnar file, each place before the rows that begin there."""
    for begin, batch in parts:
        if begin is not None:
            yield begin
        yield from batch.rows()


def _read_text(
    file: Path, lines: TextLines, suffix: str, place: Place | None
) -> tuple[list[str], Iterator[Numbered | Place], Iterator[Batch] | None]:
    """Return the rows of a text from a place on, after notes that its suffix does not tell.

    Last come the batches of a text whose rows can be parsed apart.
    """
    if suffix == ".txt":
        two = lines.first_non_blank(2)
        as_json = len(two) == 2 and all(map(is_object, two))
        notes = ["plain text, though it looks like JSON lines"] if as_json else []
        return notes, read_document(lines), None
    hint = DELIMITED_SUFFIXES.get(suffix)
    if _is_delimited(lines, hint):
        dialect = sniff(lines.sample(), hint or ",")
        notes = ["delimited text"] if hint is None else []
        notes += dialect.notes(hint or "")
        return notes, read_delimited(file, lines, dialect, place), None
    form, rows, batches = read_json(file, lines, suffix, place)
    return [] if form in USUAL.get(suffix, ()) else [form], rows, batches


def _is_delimited(lines: TextLines, hint: str | None) -> bool:
    """Tell delimited text from JSON, by the first line or by more lines."""
    first = "".join(lines.first_non_blank(1))
    if hint is not None:
        return not starts_json(first)
    if first.lstrip()[:1] in ("{", "["):
        return False
    sample = lines.sample()
    if len(sample) < 2 or any(map(is_object, sample)):
        return False
    return agreement(sniff(sample, ","), sample) > 0.5


def read_document(lines: TextLines) -> Iterator[Numbered]:
    """Yield a whole text as one row."""
    text = lines.rest()
    match = NO_TEXT.search(text)
    if match:
        number = text.count("\n", 0, match.start()) + 1
        yield number, Unreadable(str(why_not_text(text)), text)
    elif text:
        yield 1, {"text": text}
