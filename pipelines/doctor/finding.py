"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "caution", "problem"]
"""A run can start in spite of a caution; a problem stops it."""


@dataclass(frozen=True)
class Finding:
    """One line of the screen: what was checked, the result, and how to fix it where needed."""

    name: str
    text: str
    mark: Mark = "ok"
    fix: str = ""
