"""Texts of rows in a page: what is invisible is shown, and what is long is cut."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

MAX_CHARACTERS = 700  # of a text of a row
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff"
    "\ud800-\udfff]"
)
"""Control characters but tab and line feed, zero-width ones, those that turn the direction of a
text, and halves of surrogate pairs."""


def visible(value: Any) -> Any:
    """Return a text in which every unseen character is its code; other values as they are.

    A character that turns the direction of a text could make it read as another one.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", value)


def cut(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return the beginning of a text, with the number of characters that are left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text) - most:,} more characters)"


def breakable(name: str) -> Markup:
    """Return a dotted name that a line may break after each dot and underscore."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(visible(name)))))


def number(value: Any) -> str:
    """Return a number in at most five digits, "" for None; other values as texts."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1e4 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:.5g}" if abs(value) < 1e4 else f"{value:,.1f}"


def score(value: float) -> str:
    """Return a score in four decimals, or from 1,000 on in one."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
