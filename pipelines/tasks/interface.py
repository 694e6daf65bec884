"""What a person gives a model, and what comes back, for a page that asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gives = Literal["label", "labels", "number", "answer", "text", "chat"]
"""One label, several labels, a number, a span of the last text, a written text, or replies."""


@dataclass(frozen=True)
class Interface:
    """The columns whose texts a model reads, in the order of a row, and what it gives for them.

    A chat has no columns, but messages.
    """

    columns: tuple[str, ...]
    gives: Gives
