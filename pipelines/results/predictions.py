"""predictions.jsonl: what a model made of each row that its score is of.

A line is {"row", "prediction", "reference", "values"}, see `RowResult`. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.schema import shortened
from pipelines.results.files import PREDICTIONS, damage_of_file
from pipelines.tasks.base import RowResult

NAMES = [field.name for field in fields(RowResult)]


def write_predictions(folder: Path, results: Iterable[RowResult]) -> None:
    """Write predictions.jsonl to a folder, one line at a time; no file for no rows.

    Raise ValueError for a value that is not finite, which JSON does not have.
    """
    out = None
    try:
        for result in results:
            out = out or (folder / PREDICTIONS).open("w", encoding="utf-8")
            row = {name: getattr(result, name) for name in NAMES}
            out.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    finally:
        if out is not None:
            out.close()


def read_predictions(
    folder: Path, sidecar: dict[str, Any], name: str
) -> Iterator[RowResult] | None:
    """Return the rows of a result, which are read one at a time, or None if they are not there.

    `name` is the result's name in messages, as the user typed it. Raise RecipeError for a file that
    has changed since it was written, and while reading for a line that is not a row.
    """
    entry = sidecar["files"].get(PREDICTIONS)
    file = folder / PREDICTIONS
    if entry is None or not file.is_file():
        return None
    if damage := damage_of_file(file, entry):
        raise RecipeError([Problem(name, f"{damage}.")])
    return _rows(file, name)


def _rows(file: Path, name: str) -> Iterator[RowResult]:
    """Yield the rows of a file. Raise RecipeError, with the number of the line, for other lines."""
    num_values = None
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                result = parse_row(line)
            except (ValueError, RecursionError) as error:
                text = f"{file.name}:{number}: {shortened(str(error))}"
                raise RecipeError([Problem(name, text)]) from None
            num_values = num_values or len(result.values)
            if len(result.values) != num_values:
                text = f"{file.name}:{number}: {len(result.values)} values, not {num_values} as "
                raise RecipeError([Problem(name, f"{text}in the lines before.")])
            yield result


def parse_row(line: str) -> RowResult:
    """Return the row of a line. Raise ValueError for a line that is not one."""
    value = json.loads(line)
    if not isinstance(value, dict) or not value.keys() >= set(NAMES):
        raise ValueError(f"is not an object with {', '.join(NAMES)}.")
    result = RowResult(**{name: value[name] for name in NAMES})
    if not isinstance(result.row, str):
        raise ValueError(f"row is {result.row!r}, not a text.")
    numbers = result.values
    if not isinstance(numbers, list) or not numbers or not all(map(is_finite, numbers)):
        raise ValueError(f"values are {numbers!r}, not finite numbers.")
    return result


def is_finite(value: Any) -> bool:
    """Tell whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
