"""Escape values for the model card: Markdown by default, code and Python literals by filters."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from markupsafe import Markup

SPECIAL = re.compile(r"[\"'\\`*{}\[\]|#~!]")  # in HTML's attributes, in Markdown, in its tables


def one_line(text: str) -> str:
    """Return a text with a space for each line break and control character."""
    return "".join(c if c.isprintable() else " " for c in text)


def escape_markdown(value: Any) -> Markup:
    """Return a value as one line that is neither HTML nor Markdown, not even in a table.

    A value that a filter of this module has escaped already is returned as it is.
    """
    if isinstance(value, Markup):
        return value
    escaped = html.escape(one_line(str(value)), quote=False)
    return Markup(SPECIAL.sub(lambda match: f"&#{ord(match[0])};", escaped))


def code(text: str) -> Markup:
    """Return a text set as code; Markdown is not read inside."""
    return Markup("<code>{}</code>").format(escape_markdown(text))


def literal(value: Any) -> Markup:
    """Return a Python literal that cannot close a fence of Markdown.

    `value` is made of texts, numbers, booleans, None, lists, tuples and dictionaries.
    """
    return Markup(_literal(value))


def _literal(value: Any) -> str:
    """Return a Python literal, in double quotes and in ASCII."""
    if isinstance(value, str):
        return json.dumps(value).replace("`", "\\u0060")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        pairs = (f"{_literal(key)}: {_literal(part)}" for key, part in value.items())
        return f"{{{', '.join(pairs)}}}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    raise TypeError(f"{type(value).__name__} has no literal in a model card")
