"""What readers yield: numbered rows, and what could not be read as one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Unreadable:
    """A line that cannot be read as a row: the reason, and its content."""

    reason: str
    content: Any


Numbered = tuple[int, dict[str, Any] | Unreadable]


class Line(int):
    """A row's number in a split of several files; knows its file and its line there.

    The number itself counts on from file to file, so that rows of a split stay in order.
    """

    file: str
    line: int

    def __new__(cls, number: int, file: str = "", line: int = 0) -> Line:
        self = super().__new__(cls, number)
        self.file, self.line = file, line
        return self


def location(origin: str, number: int) -> tuple[str, int]:
    """Return the file and the line of a row whose split was read from `origin`."""
    return (number.file, number.line) if isinstance(number, Line) else (origin, number)


def why_not_text(text: str) -> str | None:
    """Explain why a string cannot be tokenised, or return None."""
    found = NO_TEXT.search(text)
    if found is None:
        return None
    code = ord(found[0])
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
