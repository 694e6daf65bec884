"""Convert the values of a cell to plain Python, also lists in texts."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
PLAIN = {str, int, float, bool}
NUMPY_VALUE = re.compile(r"\d+(?:\.\d*)?|True|False")
TWO_STRINGS = re.compile(r"""['"]\s+['"]""")
INTEGRAL = re.compile(r"([+-]?\d+)\.0*")


def parse_bit(value: Any) -> int | None:
    """Return 0 or 1 for a value that means no or yes, None for any other."""
    if isinstance(value, str):
        return BITS.get(value.strip().lower())
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def to_python(value: Any) -> Any:
    """Return NumPy arrays and scalars, nested ones too, as lists and numbers."""
    if value is None or type(value) in PLAIN:
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_python(item) for item in value]
    if isinstance(value, dict):
        return {key: to_python(item) for key, item in value.items()}
    return value


def parse_literal(text: str) -> Any:
    """Return the list or dictionary that a text represents, or the text itself.

    Reads JSON, Python literals (as pandas writes lists to CSV) and NumPy's `[0 1 0]`. NumPy's
    `['a' 'b']` stays a text: as a Python literal it would be the one string "ab".
    """
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    words = text.strip("[] \t\r\n").split()
    if words and all(map(NUMPY_VALUE.fullmatch, words)):
        return [ast.literal_eval(word) for word in words]
    if TWO_STRINGS.search(text):
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def to_number(value: Any) -> float | None:
    """Return a number, or a text of one, as a float, or None.

    "1_000" is a name, though Python reads it as a number.
    """
    try:
        return None if isinstance(value, str) and "_" in value else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def whole_number(value: Any) -> int | None:
    """Return a number, or a text with a decimal point, as a whole number, or None.

    1, 1.0 and "1.0" are 1; 0.5, "1", True and NaN are None.
    """
    if isinstance(value, str):
        match = INTEGRAL.fullmatch(value)
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value and abs(value) != float("inf") and value % 1 == 0 else None
