"""Read the answers to a question in the forms of common datasets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pipelines.tasks.cells import parse_bit, parse_literal, to_python, whole_number

SUPPORTED = '{"text": [...], "answer_start": [...]}, one {"text", "answer_start"} or a list of them'


def read_answers(value: Any, impossible: Any = None) -> dict[str, list[Any]]:
    """Return answers as SQuAD's flat rows hold them; empty lists mean no answer.

    None, NaN, and empty cells, lists and texts (with any start) mean no answer. `impossible` is the
    row's `is_impossible`, if it has one. Raise ValueError for any other form, and if `impossible`
    contradicts the answers.
    """
    value = to_python(value)
    value = parse_literal(value) if isinstance(value, str) else value
    value = None if is_nan(value) or value == "" else value
    pairs = [(text, start) for text, start in _pairs(value) if text is not None and text.strip()]
    if any(start is None for _, start in pairs):
        raise ValueError(f"holds {value!r}, not {SUPPORTED}.")
    stated = parse_bit(to_python(impossible))
    if stated == 1 and pairs:
        raise ValueError(f"holds {pairs[0][0]!r}, but is_impossible is {impossible!r}.")
    if stated == 0 and not pairs:
        raise ValueError(f"holds no answer, but is_impossible is {impossible!r}.")
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def misplaced(text: str, start: int, context: str) -> str:
    """Return a message about an answer that is not at its start, with the nearest place of it."""
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    if not places:
        return f"answer {text!r} is not at character {start}, nor anywhere else in the context."
    nearest = min(places, key=lambda place: abs(place - start))
    return f"answer {text!r} is not at character {start}; the nearest one is at {nearest}."


def is_nan(value: Any) -> bool:
    """Tell whether a value is NaN, pandas' missing value."""
    return isinstance(value, float) and value != value


def _pairs(value: Any) -> list[tuple[str | None, int | None]]:
    """Return texts and starts. Raise ValueError for a form that is not supported."""
    match value:
        case None | []:
            return []
        case {"text": None}:
            return []
        case {"text": [], **rest} if rest.get("answer_start") in (None, []):
            return []
        case {"text": str() as text, "answer_start": start}:
            return [_pair(value, text, start)]
        case {"text": list() as texts, "answer_start": list() as starts}:
            if len(texts) == len(starts):
                return [_pair(value, *each) for each in zip(texts, starts, strict=True)]
        case list() if all(isinstance(each, dict) for each in value):
            return _flat(map(_pairs, value))
    raise ValueError(f"holds {value!r}, not {SUPPORTED}.")


def _flat(lists: Iterable[list[Any]]) -> list[Any]:
    """Return the items of all lists."""
    return [item for each in lists for item in each]


def _pair(value: Any, text: Any, start: Any) -> tuple[str | None, int | None]:
    """Return a text and its start; a start may be missing where there is no text."""
    whole = None if isinstance(start, str) else whole_number(start)
    known = start is None or is_nan(start) or whole is not None
    if not known or not (text is None or isinstance(text, str)):
        raise ValueError(f"holds {value!r}, not {SUPPORTED}.")
    return text, whole
