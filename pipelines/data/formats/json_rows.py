"""Read rows from JSON lines, arrays, objects, SQuAD and columns."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.formats.text_stream import SAMPLE_LINES, TextLines
from pipelines.data.rows import (
    NO_TEXT,
    Batch,
    Numbered,
    Place,
    Unreadable,
    first_reason,
    strings,
    why_not_text,
)
from pipelines.errors import DataError

LINE_SUFFIXES = (".jsonl", ".ndjson")
WRAPPERS = frozenset(
    ["data", "rows", "examples", "records", "items", "instances", "samples", "dataset"]
)
"""Keys of an object that hold its rows."""
METADATA = frozenset(
    [
        "version",
        "name",
        "description",
        "license",
        "info",
        "split",
        "language",
        "url",
        "source",
        "author",
        "created",
        "date",
        "schema",
        "metadata",
        "count",
        "total",
        "size",
    ]
)
"""Keys that may be next to the rows, whatever the key of the rows is."""
ESCAPED = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
WHITESPACE = re.compile(r"[ \t\r\n]*")
BATCH_LINES, BATCH_CHARACTERS = 1000, 2**20  # of a batch of lines, whichever is reached first
LINES_TO_PLACE = 256  # lines from one place, where reading can begin again, to the next


class Duplicated(dict[str, Any]):
    """A JSON object in which `key` is duplicated."""

    key: str


def read_json(
    file: Path, lines: TextLines, suffix: str, place: Place | None = None
) -> tuple[str, Iterator[Numbered | Place], Iterator[Batch] | None]:
    """Return the form of JSON in a file, its rows from a place on, or all as batches of lines.

    JSON lines are read lazily and numbered by line. A document is parsed whole, and its rows are
    numbered by position. Raise DataError for a document that cannot be parsed.
    """
    first, second = [*lines.first_non_blank(2), "", ""][:2]
    if _are_lines(first, second, suffix):
        return "JSON lines", read_lines(lines, place), line_batches(lines)
    text = lines.rest()
    try:
        values, duplicates = _parse_document(text)
    except ValueError as error:
        some = [
            line for line in islice(io.StringIO(text, newline=""), SAMPLE_LINES) if line.strip()
        ]
        only_damaged = suffix in LINE_SUFFIXES and first.lstrip().startswith("{")
        if only_damaged or sum(map(is_object, some)) > len(some) / 2:
            return "JSON lines", read_lines(TextLines(io.StringIO(text, newline=""))), None
        raise DataError(f"{file}:{error}") from None
    form, items = _find_rows(file, values, suffix)
    check = duplicates or NO_TEXT.search(text) or ESCAPED.search(text)
    return form, _numbered(items, check=bool(check)), None


def _are_lines(first: str, second: str, suffix: str) -> bool:
    """Tell JSON lines from one document, by the first two lines that are not empty."""
    values = _parse_line(first)
    if values and second:
        return True
    if not values:
        return first.lstrip()[:1] not in ("{", "[") or (
            first.lstrip()[:1] == "{" and is_object(second)
        )
    [value] = values
    if isinstance(value, dict):
        return suffix in LINE_SUFFIXES and wrapper_key(value, known_only=True) is None
    return not isinstance(value, list)


def _parse_line(line: str) -> list[Any]:
    """Return the JSON value of a line as a list of one; [] if the line is not JSON."""
    try:
        return [json.loads(line)]
    except (ValueError, RecursionError):
        return []


def is_object(line: str) -> bool:
    """Tell whether a line by itself is a JSON object."""
    return line.lstrip()[:1] == "{" and bool(_parse_line(line))


def starts_json(line: str) -> bool:
    """Tell whether a line is the begin of JSON, and not the header of a CSV."""
    begins = re.match(r'\s*(?:\{\s*(?:"|\}|$)|\[\s*(?:[{\[\]]|$))', line)
    return bool(begins) or is_object(line)


def read_lines(lines: TextLines, place: Place | None = None) -> Iterator[Numbered | Place]:
    """Yield one object for each line that is not empty, from a place on, and places."""
    before, num_rows = (place.number, place.row) if place else (0, 0)
    if place:
        lines.seek(place.offset)
    for number, line in enumerate(map(str.strip, lines), start=before + 1):
        if line:
            num_rows += 1
            yield number, _parse_row(line)
        if number % LINES_TO_PLACE == 0 and (offset := lines.tell()) is not None:
            yield Place(offset, number, num_rows)


def line_batches(lines: TextLines) -> Iterator[Batch]:
    """Yield all lines, some at a time."""
    number, batch, size = 1, list[str](), 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if len(batch) >= BATCH_LINES or size >= BATCH_CHARACTERS:
            yield Batch(parse_lines, number, batch)
            number, batch, size = number + len(batch), [], 0
    if batch:
        yield Batch(parse_lines, number, batch)


def parse_lines(number: int, lines: list[str]) -> list[Numbered]:
    """Return one object for each line that is not empty, numbered from `number` on."""
    stripped = enumerate(map(str.strip, lines), start=number)
    return [(each, _parse_row(line)) for each, line in stripped if line]


def _parse_row(line: str) -> dict[str, Any] | Unreadable:
    """Return the object of a line, or why it is none."""
    try:
        row = parse(line)
    except ValueError as error:
        return Unreadable(str(error), line)
    return row if isinstance(row, dict) else Unreadable(f"{line[:40]!r} is not an object.", line)


def parse(text: str) -> Any:
    """Parse JSON, or raise ValueError with the reason.

    Strings that cannot be tokenised are errors too.
    """
    reason = why_not_text(text)
    if reason is not None:
        raise ValueError(reason)
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}.") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply.") from None
    if ESCAPED.search(text):
        reason = first_reason(strings(value))
        if reason is not None:
            raise ValueError(reason)
    return value


def _mark_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary, `Duplicated` if a key is."""
    unique = dict(pairs)
    if len(unique) == len(pairs):
        return unique
    marked = Duplicated(unique)
    keys = [key for key, _ in pairs]
    marked.key = next(key for key in keys if keys.count(key) > 1)
    return marked


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary. Raise ValueError for a key that is duplicated."""
    marked = _mark_duplicates(pairs)
    if isinstance(marked, Duplicated):
        raise ValueError(f"key {marked.key!r} is duplicated.")
    return marked


def _parse_document(text: str) -> tuple[list[Any], bool]:
    """Return all JSON values of a text, and whether keys are duplicated.

    Raise ValueError with the line of the first error.
    """
    num_duplicated = 0

    def mark(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal num_duplicated
        marked = _mark_duplicates(pairs)
        num_duplicated += isinstance(marked, Duplicated)
        return marked

    decoder = json.JSONDecoder(object_pairs_hook=mark, strict=False)
    values, position = [], _skip_whitespace(text, 0)
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            text = f"{error.lineno}: not JSON: {error.msg}, in column {error.colno}."
            raise ValueError(text) from None
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            why = "nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"{line}: not JSON that can be read: {why}.") from None
        values.append(value)
        position = _skip_whitespace(text, position)
    return values, num_duplicated > 0


def _skip_whitespace(text: str, position: int) -> int:
    match = WHITESPACE.match(text, position)
    assert match is not None
    return match.end()


def _find_rows(file: Path, values: list[Any], suffix: str) -> tuple[str, list[Any]]:
    """Return the form of a document, and its rows.

    Raise DataError if the rows are ambiguous.
    """
    if len(values) != 1:
        return "JSON objects", values
    [document] = values
    if isinstance(document, list):
        return "a JSON array", _expand_squad(file, document)
    if not isinstance(document, dict):
        return "JSON", values
    table = _table_rows(document)
    if table is not None:
        return "a JSON object of columns", table
    key = wrapper_key(document, known_only=suffix in LINE_SUFFIXES)
    if key is not None:
        items = document[key]
        expanded = _expand_squad(file, items)
        form = "SQuAD" if expanded is not items else f"a JSON object with rows in {key!r}"
        return form, expanded
    lists = [key for key, value in document.items() if _is_rows(value)]
    if len(lists) > 1 and all(key in lists or key in METADATA for key in document):
        text = f"{file}: {', '.join(map(repr, lists))} each hold rows. Write each to its own file."
        raise DataError(text)
    if "data" in document:
        text = f"{document['data']!r:.40} is not a list of rows"
        raise DataError(f"{file}: not SQuAD JSON, and no rows: {text} in 'data'.")
    return "one JSON object", values


def _is_rows(value: Any) -> bool:
    """Tell whether a value is a list of objects, but not the turns of one chat."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and not {"role", "from"} & item.keys() for item in value)


def wrapper_key(document: dict[str, Any], *, known_only: bool) -> str | None:
    """Return the key of an object's rows, or None if the object is a row.

    A key that is not in WRAPPERS must be the only one, apart from metadata; with `known_only`, no
    such key is accepted.
    """
    known = [key for key in document if key.lower() in WRAPPERS and _holds_rows(document[key])]
    if len(known) == 1 and (not known_only or _only_metadata(document, known[0])):
        return known[0]
    lists = [key for key in document if _is_rows(document[key])]
    if len(lists) == 1 and not known_only and _only_metadata(document, lists[0]):
        return lists[0]
    return None


def _holds_rows(value: Any) -> bool:
    return value == [] or _is_rows(value)


def _only_metadata(document: dict[str, Any], key: str) -> bool:
    return all(other == key or other.lower() in METADATA for other in document)


def _table_rows(document: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of an object of columns, or None for another object.

    Such objects are those of pandas' `to_json` and `to_dict`.
    """
    values = [*document.values()]
    split = {*document} == {"columns", "index", "data"} and all(map(_is_list, values))
    if split and all(map(_is_list, document["data"])):
        return [dict(zip(document["columns"], cells, strict=False)) for cells in document["data"]]
    if values and all(map(_is_list, values)):
        same_length = len({len(value) for value in values}) == 1
        if same_length and not all(isinstance(item, dict) for each in values for item in each):
            return [dict(zip(document, cells, strict=True)) for cells in zip(*values, strict=True)]
    if values and all(isinstance(value, dict) for value in values):
        if _are_indices([*document]):
            return values
        if _are_indices([*values[0]]) and all([*value] == [*values[0]] for value in values):
            return [{key: document[key][index] for key in document} for index in values[0]]
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _are_indices(keys: list[str]) -> bool:
    return keys == [str(index) for index in range(len(keys))] and bool(keys)


def _expand_squad(file: Path, items: list[Any]) -> list[Any]:
    """Return the questions of SQuAD's articles; other items unchanged."""
    first = items[0] if items else None
    if not isinstance(first, dict) or not {"paragraphs", "qas"} & first.keys():
        return items
    try:
        paragraphs = [
            paragraph
            for item in items  # which may be no object: hence no `get`
            for paragraph in (item["paragraphs"] if "paragraphs" in item else [item])  # noqa: SIM401
        ]
        return [
            _squad_row(paragraph["context"], question)
            for paragraph in paragraphs
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: not SQuAD JSON: {error!r}.") from None


def _squad_row(context: Any, question: Any) -> dict[str, Any] | Unreadable:
    """Return a question of a nested SQuAD file as a row."""
    try:
        answers = question.get("answers") or []
        row = {
            "id": question["id"],
            "question": question["question"],
            "context": context,
            "answers": {
                "text": [answer["text"] for answer in answers],
                "answer_start": [answer["answer_start"] for answer in answers],
            },
        }
        if "is_impossible" in question:
            row["is_impossible"] = question["is_impossible"]
        return row
    except (AttributeError, KeyError, TypeError) as error:
        return Unreadable(f"not a question of SQuAD: {error!r}.", question)


def _numbered(items: list[Any], *, check: bool) -> Iterator[Numbered]:
    """Yield rows with their position; unusable ones are Unreadable."""
    for number, item in enumerate(items, start=1):
        reason = _why_unusable(item) if check else None
        if isinstance(item, Unreadable):
            yield number, item
        elif reason is not None:
            yield number, Unreadable(reason, item)
        elif isinstance(item, dict):
            yield number, item
        else:
            yield number, Unreadable(f"{str(item)[:40]!r} is not an object.", item)


def _why_unusable(value: Any) -> str | None:
    """Explain why a value of a document is unusable, or return None."""
    key = _duplicated_key(value)
    return first_reason(strings(value)) if key is None else f"key {key!r} is duplicated."


def _duplicated_key(value: Any) -> str | None:
    """Return a duplicated key of an object in a value, or None."""
    if isinstance(value, Duplicated):
        return value.key
    inner = [*value.values()] if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return None
    return next((key for each in inner if (key := _duplicated_key(each)) is not None), None)
