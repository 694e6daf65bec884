"""A recipe as Python source, formatted as ruff formats it. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

WIDTH = 100
INDENT = "    "


def to_python(value: Any, prefix: str = "", shown: Collection[str] = ()) -> str:
    """Return the expression that makes a frozen value, without the fields that have defaults.

    Fields that are `shown` are written in any case. The first line begins with `prefix`.
    """
    return _layout(value, prefix, "", 0, shown)


def to_annotated_python(value: Any, level: int = 0) -> str:
    """Return the expression with each field on a line, and a comment where it is no default."""
    inside = INDENT * (level + 1)
    lines = [f"{type(value).__name__}("]
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            text = f"{inside}{field.name}={to_annotated_python(item, level + 1)},"
        else:
            text = f"{inside}{field.name}={literal(item)},"
        lines.append(text + _mark(field, item))
    return "\n".join([*lines, f"{INDENT * level})"])


def _mark(field: dataclasses.Field[Any], item: Any) -> str:
    """Return a comment with a field's default, "" if it has its default."""
    if field.default is dataclasses.MISSING or item == field.default:
        return ""  # one without a default is required, or a section, whose own fields are marked
    return f"  # default: {literal(field.default)}"


def names_in(value: Any) -> set[str]:
    """Return the names of the classes that `to_python` writes."""
    names = {type(value).__name__}
    for _, item in _arguments(value, ()):
        for part in item if isinstance(item, tuple) else (item,):
            if dataclasses.is_dataclass(part):
                names |= names_in(part)
    return names


def literal(value: Any, shown: Collection[str] = ()) -> str:
    """Return a value as Python source on one line."""
    if dataclasses.is_dataclass(value):
        parts = (f"{name}={literal(item, shown)}" for name, item in _arguments(value, shown))
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, tuple):
        items = ", ".join(map(literal, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _arguments(value: Any, shown: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that are not their defaults, and those that are shown."""
    for field in dataclasses.fields(value):
        item, default = getattr(value, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in shown or item != default:
            yield field.name, item


def _layout(value: Any, prefix: str, suffix: str, level: int, shown: Collection[str]) -> str:
    """Return a value on one line if it fits, else with its parts on lines of their own."""
    flat = INDENT * level + prefix + literal(value, shown) + suffix
    if len(flat) <= WIDTH:
        return flat
    if dataclasses.is_dataclass(value):
        opening, closing = f"{type(value).__name__}(", ")"
        parts = [(f"{name}=", item) for name, item in _arguments(value, shown)]
    elif isinstance(value, tuple):
        opening, closing, parts = "(", ")", [("", item) for item in value]
    elif isinstance(value, dict):
        opening, closing = "{", "}"
        parts = [(f"{literal(key)}: ", item) for key, item in value.items()]
    else:
        return flat  # it cannot be broken
    inside = INDENT * (level + 1)
    together = inside + ", ".join(name + literal(item, shown) for name, item in parts)
    if dataclasses.is_dataclass(value) and len(together) <= WIDTH:  # of calls alone, as ruff does
        lines = [together]
    else:
        lines = [_layout(item, name, ",", level + 1, shown) for name, item in parts]
    return "\n".join([INDENT * level + prefix + opening, *lines, INDENT * level + closing + suffix])


def _string(text: str) -> str:
    """Return a string in double quotes, or in single ones where that needs fewer escapes."""
    source = repr(text)
    if source[0] == '"' or text.count('"') > text.count("'"):
        return source
    return '"' + source[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'


def _float(value: float) -> str:
    """Return a number in its usual form: 3, 0.1, 2e-4."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    if abs(value) >= 0.01:
        return repr(value)
    shortest = next(text for n in range(18) if float(text := f"{value:.{n}e}") == value)
    mantissa, exponent = shortest.split("e")
    return f"{mantissa}e{int(exponent)}"
