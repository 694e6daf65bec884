"""Read JSONL, CSV, text and SQuAD JSON, line by line, and say which lines are no rows."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.tasks import DataError

SUFFIXES = (".jsonl", ".csv", ".txt", ".json")
NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Unreadable:
    """A line that is no row: why, and what stands there."""

    reason: str
    content: Any


Numbered = tuple[int, dict[str, Any] | Unreadable]


def read(file: Path) -> Iterator[Numbered]:
    """Yield line numbers and rows of a file; a line that is no row is Unreadable.

    Raise DataError for a file of which nothing can be read any more.
    """
    try:
        # A byte that is not UTF-8 becomes a lone surrogate, so that its line can be named.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            match file.suffix:
                case ".csv":
                    yield from read_csv(file, lines)
                case ".txt":
                    yield from read_text(lines.read())
                case ".json":
                    yield from read_squad(file, lines.read())
                case _:
                    yield from read_jsonl(lines)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}.") from None


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and rows. Raise DataError at the first line that is no row."""
    for number, row in read(file):
        if isinstance(row, Unreadable):
            raise DataError(f"{file}:{number}: {row.reason}")
        yield number, row


def read_jsonl(lines: Iterable[str]) -> Iterator[Numbered]:
    """Yield one object for each line; an empty line is passed over."""
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        try:
            row: Any = parse(line)
        except ValueError as error:
            yield number, Unreadable(str(error), line)
            continue
        if not isinstance(row, dict):
            row = Unreadable(f"{line[:40]!r} is not an object.", line)
        yield number, row


def read_csv(file: Path, lines: Iterable[str]) -> Iterator[Numbered]:
    """Yield rows as text, so that `NA` stays `NA`; each must be as long as the header."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None or "unexpected end of data" in str(error):
                # All that follows may stand inside these quotes: nobody knows how many rows.
                raise DataError(f"{file}:{number}: {error}: a quote is not closed.") from None
            yield number, Unreadable(f"{error}.", None)
            continue
        if cells is None:
            return
        reason = next(filter(None, map(what_is_no_text, cells)), None)
        if header is None:
            header = checked_header(file, number, cells, reason)
        elif reason is not None:
            yield number, Unreadable(reason, cells)
        elif cells and len(cells) != len(header):
            text = f"{len(cells)} cells, but the header has {len(header)}."
            yield number, Unreadable(text, cells)
        elif cells:
            yield number, dict(zip(header, cells, strict=True))


def checked_header(file: Path, number: int, cells: list[str], reason: str | None) -> list[str]:
    """Return the names of a CSV's columns. Raise DataError unless each stands once."""
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        reason = f"column {twice[0]!r} stands twice in the header."
    if reason is not None:
        raise DataError(f"{file}:{number}: {reason}")
    return cells


def read_text(text: str) -> Iterator[Numbered]:
    """Yield a whole file as one row."""
    found = NO_TEXT.search(text)
    if found:
        number = text.count("\n", 0, found.start()) + 1
        yield number, Unreadable(str(what_is_no_text(text)), text)
    elif text:
        yield 1, {"text": text}


def read_squad(file: Path, text: str) -> Iterator[Numbered]:
    """Yield the questions of a nested SQuAD file; the number is the question's place."""
    try:
        articles = parse(text)["data"]
        questions = [
            (paragraph["context"], question)
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not SQuAD JSON: {error!r}.") from None
    for number, (context, question) in enumerate(questions, start=1):
        try:
            answers = question.get("answers", [])
            row = {
                "id": question["id"],
                "question": question["question"],
                "context": context,
                "answers": {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                },
            }
        except (AttributeError, KeyError, TypeError) as error:
            yield number, Unreadable(f"not a question of SQuAD: {error!r}.", question)
        else:
            yield number, row


def parse(text: str) -> Any:
    """Parse JSON. Raise ValueError, saying why, also for what cannot be encoded as a text."""
    reason = what_is_no_text(text)
    if reason is not None:
        raise ValueError(reason)
    try:
        value = json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}.") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply.") from None
    if "\\u" in text:
        reason = next(filter(None, map(what_is_no_text, strings(value))), None)
        if reason is not None:
            raise ValueError(reason)
    return value


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary. Raise ValueError for a key that stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice.")
    return found


def strings(value: Any) -> Iterator[str]:
    """Yield every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from strings(item)


def what_is_no_text(text: str) -> str | None:
    """Say what in a string no tokenizer takes, or None."""
    found = NO_TEXT.search(text)
    if found is None:
        return None
    code = ord(found[0])
    if code == 0:
        return "a NUL character."
    if 0xDC80 <= code <= 0xDCFF:  # where `surrogateescape` puts a byte
        return f"not UTF-8: byte 0x{code - 0xDC00:02x}. Save the file as UTF-8."
    return f"half a surrogate pair, U+{code:04X}."
