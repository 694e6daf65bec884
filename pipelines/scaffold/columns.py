"""What the columns of a data set hold, and which of them can be a text or a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pipelines.data.validate import similar
from pipelines.errors import Problem, RecipeError
from pipelines.scaffold.look import columns_in
from pipelines.tasks.cells import (
    parse_bit,
    parse_literal,
    to_number,
    to_python,
    whole_number,
)
from pipelines.tasks.chat_forms import looks_like_turns

Kind = Literal["text", "number", "list", "chat", "other", "empty"]
SAMPLE = 2000  # rows whose cells decide what a column holds
LABEL_CHARACTERS = 60  # mean length of a text above which it is no label
TEXT_NAMES = (
    *("text", "sentence", "content", "body", "message", "review", "document", "article"),
    *("comment", "tweet", "post", "headline", "title", "description", "abstract", "question"),
    *("utterance", "query", "passage", "summary", "sms", "email", "texts", "review_text"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "categories", "target", "topic", "topics"),
    *("sentiment", "intent", "queue", "tag", "tags", "genre", "emotion", "emotions", "score"),
    *("rating", "stars", "y", "class_name", "category_name", "label_name", "is_spam", "spam"),
)


@dataclass(frozen=True)
class Column:
    """A column: its name, and the values of its cells that are not empty."""

    name: str
    values: list[Any]

    @cached_property
    def sample(self) -> list[Any]:
        """Return values from all parts of the column, lists in texts as lists."""
        step = max(1, len(self.values) // SAMPLE)
        cells = (to_python(value) for value in self.values[::step][:SAMPLE])
        return [parse_literal(cell) if isinstance(cell, str) else cell for cell in cells]

    @cached_property
    def kind(self) -> Kind:
        """Return what most cells hold."""
        if not self.sample:
            return "empty"
        kinds: Counter[Kind] = Counter(map(kind_of, self.sample))
        if kinds.keys() <= {"number"}:
            return "number"
        kinds["text"] += kinds.pop("number", 0)
        return max(kinds, key=lambda kind: kinds[kind])

    @cached_property
    def counts(self) -> Counter[str]:
        """Return the number of rows with each value, as a text."""
        return Counter(map(str, self.values))

    @cached_property
    def mean_length(self) -> float:
        """Return the mean number of characters of a cell."""
        return sum(len(str(value)) for value in self.sample) / max(len(self.sample), 1)

    @property
    def has_fractions(self) -> bool:
        """Tell whether it holds numbers that are not whole."""
        return self.kind == "number" and any(as_whole(value) is None for value in self.sample)

    @property
    def is_bits(self) -> bool:
        """Tell whether every cell means yes or no."""
        return bool(self.sample) and all(parse_bit(value) is not None for value in self.sample)

    @property
    def can_be_text(self) -> bool:
        """Tell whether its cells are texts to read."""
        return self.kind == "text"

    @property
    def can_be_label(self) -> bool:
        """Tell whether its cells are labels: few values that repeat, numbers, or lists."""
        if self.kind in ("number", "list"):
            return self.kind == "list" or not self.looks_like_id
        short = self.kind == "text" and self.mean_length <= LABEL_CHARACTERS
        return short and 2 * len(self.counts) <= len(self.values)

    @property
    def looks_like_id(self) -> bool:
        """Tell whether it numbers the rows: whole numbers that are all different."""
        named = self.name.strip().lower() in ("id", "idx", "index", "row", "")
        differ = len(self.counts) == len(self.values) > 2
        return named or (differ and self.kind == "number" and not self.has_fractions)


def kind_of(value: Any) -> Kind:
    """Return what one cell holds."""
    if looks_like_turns(value):
        return "chat"
    if isinstance(value, list):
        return "list"
    if isinstance(value, bool | int | float) or to_number(value) is not None:
        return "number"
    return "text" if isinstance(value, str) else "other"


def as_whole(value: Any) -> int | None:
    """Return a whole number, or a text of one, or None."""
    number = to_number(value)
    return None if number is None else whole_number(number)


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, Column]:
    """Return the columns of rows by their names."""
    found = {}
    for name in columns_in(rows):
        cells = (row.get(name) for row in rows)
        values = [cell for cell in cells if cell is not None and str(cell).strip()]
        found[name] = Column(name, values)
    return found


def named(columns: dict[str, Column], names: Sequence[str]) -> list[Column]:
    """Return the columns with one of some names, in any case, in the order of the names."""
    by_name = {column.name.strip().lower(): column for column in columns.values()}
    return [by_name[name] for name in names if name in by_name]


def typed_column(columns: dict[str, Column], name: str, field: str) -> Column:
    """Return the column with a name that was typed. Raise RecipeError if there is none."""
    if name in columns:
        return columns[name]
    text = f"no column {name!r}{similar(name, list(columns))}. Columns: {', '.join(columns)}."
    raise RecipeError([Problem(field, text)])


def only(candidates: Sequence[Column], columns: dict[str, Column], field: str, what: str) -> Column:
    """Return the only candidate. Raise RecipeError that names them for several, and for none."""
    if len(candidates) == 1:
        return candidates[0]
    flag = f"--{field.replace('_', '-')}"
    if candidates:
        names = " and ".join(repr(column.name) for column in candidates[:10])
        text = f"{names} can each be {what}. Say which: {flag} {candidates[0].name}."
    else:
        held = "; ".join(f"{column.name!r} {contents(column)}" for column in columns.values())
        text = f"no column can be {what}: {held}. Name one in spite of that with {flag}."
    raise RecipeError([Problem(field, text)])


def contents(column: Column) -> str:
    """Return what a column holds, in a phrase."""
    if column.kind == "empty":
        return "is empty"
    if column.kind == "number":
        return f"holds numbers, such as {column.values[0]}"
    if column.kind == "text":
        return f"holds {len(column.counts):,} different texts in {len(column.values):,} rows"
    return {"list": "holds lists", "chat": "holds chats"}.get(column.kind, "holds objects")
