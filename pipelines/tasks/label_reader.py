"""Read the names of a row's labels from one or several columns."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.tasks.cells import parse_bit, to_python, whole_number
from pipelines.tasks.label_forms import find_form, list_of, read_vector, usual_length

KINDS = {str: "text", int: "number", float: "number", bool: "boolean"}
DECIMAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """How rows hold their labels, by `TextClassification`'s options."""

    column: str
    columns: tuple[str, ...] = ()
    form: Literal["auto", "list", "multi_hot"] = "auto"
    names: tuple[str, ...] = ()
    separator: str | None = None
    several: bool = False
    """Whether a row may have any number of labels."""

    @property
    def form_is_known(self) -> bool:
        """Tell whether a row's labels can be read without the other rows."""
        vectors = self.form == "multi_hot" and bool(self.names)
        return not self.several or bool(self.columns) or vectors or self.form == "list"

    def resolved(self, train: Examples) -> LabelReader:
        """Return the reader with the form of the label lists that the training rows hold.

        Raise DataError where they can be read in two ways, or contradict the options.
        """
        if self.form_is_known:
            return self
        location = f"{train.origin}: column {self.column!r}"
        cells = (row.get(self.column) for row in train.rows)
        lists = [each for cell in cells if (each := list_of(cell, self.separator)) is not None]
        declared = train.label_names.get(self.column, ())
        form: str | None = self.form
        if form == "auto":
            form = find_form(lists, declared_ids=bool(declared))
        if form is None:
            raise DataError(
                f"{location}: every row holds [0, 1] or [1, 0], two ids or a vector. "
                "Say which by --task.label-form list or --task.label-form multi_hot."
            )
        if form == "list":
            if self.names:
                text = "holds lists of labels; --task.label-names is for multi_hot vectors."
                raise DataError(f"{location} {text}")
            return replace(self, form="list")
        width = usual_length(lists)
        names = self.names or (declared if len(declared) == width else ())
        names = names or tuple(map(str, range(width)))
        if len(names) != width:
            text = f"{len(names)} --task.label-names for vectors of {width} values."
            raise DataError(f"{location}: {text}")
        if width < 2:
            text = f"vectors of {width} values; a classifier needs two labels."
            raise DataError(f"{location}: {text}")
        return replace(self, form="multi_hot", names=names)

    def read(self, examples: Examples, index: int, row: dict[str, Any]) -> list[str]:
        """Return the names of a row's labels, each once. Raise DataError for unreadable ones."""
        if self.columns:
            return self._read_columns(examples, index, row)
        value = to_python(row.get(self.column))
        blank = isinstance(value, str) and not value.strip() and self.separator is None
        if value is None or blank:
            hint = " For one 0/1 column a label use --task.label-columns." if self.several else ""
            raise DataError(
                f"{examples.locate(index)}: no value in column {self.column!r}. "
                f"Columns: {', '.join(row)}.{hint}"
            )
        if not self.form_is_known:
            return self.resolved(examples).read(examples, index, row)
        values = self._read_list(examples, index, value) if self.several else [value]
        if self.form == "multi_hot":
            try:
                return read_vector(values, self.names)
            except ValueError as error:
                raise DataError(f"{examples.locate(index)}: {error}") from None
        declared = examples.label_names.get(self.column)
        if declared is None:
            names = [self._read_name(examples, index, value) for value in values]
        else:
            names = [declared_name(examples, index, value, declared) for value in values]
        return list(dict.fromkeys(names))

    def _read_columns(self, examples: Examples, index: int, row: dict[str, Any]) -> list[str]:
        """Return the columns of a row that hold 1. Raise DataError unless all hold 0 or 1."""
        bits = {column: parse_bit(to_python(row.get(column))) for column in self.columns}
        for column, bit in bits.items():
            if bit is None:
                raise DataError(
                    f"{examples.locate(index)}: column {column!r} holds {row.get(column)!r}, "
                    f"neither 0 nor 1. Columns: {', '.join(row)}."
                )
        return [column for column, bit in bits.items() if bit]

    def _read_list(self, examples: Examples, index: int, value: Any) -> list[Any]:
        """Return the list of labels in a cell. Raise DataError if it holds none."""
        values = list_of(value, self.separator)
        if values is None:
            raise DataError(
                f"{examples.locate(index)}: {value!r} is not a list of labels. A text cell may "
                'hold ["a", "b"], or with --task.label-separator ";" a;b; for one 0/1 column a '
                "label use --task.label-columns."
            )
        return values

    def _read_name(self, examples: Examples, index: int, value: Any) -> str:
        """Return the name of a label that is a text or a whole number.

        1, 1.0 and "1.0" are the label "1". Refused are 0.5, which needs a regression, -1, which
        means "no label" on the Hub, and the text "3" where other rows have the number 3.
        """
        number = whole_number(value)
        name = str(value if number is None else number)
        if not name.strip():
            raise DataError(
                f"{examples.locate(index)}: {value!r} among the labels is not a name. A row "
                "without a label has an empty list, []."
            )
        if not isinstance(value, str | int | float) or (number is None and is_fraction(value)):
            hint = "For numbers use --task.problem-type regression."
            if self.several:
                hint = "Labels are names, ids, or vectors of 0 and 1, not probabilities."
            elif isinstance(value, list):
                hint = "For several use --task.problem-type multi_label_classification."
            raise DataError(f"{examples.locate(index)}: {value!r} is not one label. {hint}")
        if name == "-1":
            raise DataError(
                f"{examples.locate(index)}: label -1 marks a row without a label. If it is a class "
                "of yours, give it a name."
            )
        first = to_python(examples.first_row.get(self.column))
        if self.several:
            first = next(iter(list_of(first, self.separator) or []), None)
        if type(first) in KINDS and KINDS[type(first)] != KINDS[type(value)]:
            raise DataError(
                f"{examples.locate(index)}: label {value!r} is a {KINDS[type(value)]}, but the "
                f"first row has {first!r}, a {KINDS[type(first)]}."
            )
        return name


def declared_name(examples: Examples, index: int, value: Any, names: tuple[str, ...]) -> str:
    """Return the name of a class id.

    Raise DataError for an id that the dataset does not declare.
    """
    number = whole_number(value)
    if number is None or not 0 <= number < len(names):
        location = examples.locate(index)
        raise DataError(f"{location}: label {value} is outside 0 to {len(names) - 1}.")
    return names[number]


def is_fraction(value: Any) -> bool:
    """Tell a number from a name: a float, or a text with a decimal point."""
    return isinstance(value, float) or DECIMAL.fullmatch(str(value)) is not None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts "2" before "10"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]
