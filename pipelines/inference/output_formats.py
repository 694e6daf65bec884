"""The output formats of predictions: JSON lines, CSV and TSV."""

from __future__ import annotations

import codecs
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataError


@dataclass(frozen=True)
class JsonLines:
    """One JSON object for each row."""

    ascii_only: bool = False

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Return the lines of rows."""
        return "".join(json.dumps(row, ensure_ascii=self.ascii_only) + "\n" for row in rows)


@dataclass
class Table:
    """Rows of a CSV or TSV file; `columns` are those of its header, None before it is written."""

    delimiter: str
    columns: list[str] | None = None

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Return the lines of rows, after the header if there is none yet.

        Raise DataError for a row with other columns than the header.
        """
        flat = [flattened(row) for row in rows]
        buffer = io.StringIO()
        columns = self.columns or list(dict.fromkeys(name for row in flat for name in row))
        table = csv.DictWriter(buffer, columns, delimiter=self.delimiter, lineterminator="\n")
        if self.columns is None:
            table.writeheader()
        self.columns = columns
        for row in flat:
            if not row.keys() <= set(columns):
                others = ", ".join(sorted(row.keys() - set(columns)))
                raise DataError(f"a row has {others}, which the header of --out does not have.")
            table.writerow(row)
        return buffer.getvalue()


def format_of(out: Path, begun: bool) -> JsonLines | Table:
    """Return the format that the suffix of `out` names, with the header of an `out` in progress."""
    delimiter = {".csv": ",", ".tsv": "\t"}.get(out.suffix.lower())
    if delimiter is None:
        return JsonLines()
    if not begun:
        return Table(delimiter)
    with out.open(encoding="utf-8", newline="") as lines:
        return Table(delimiter, next(csv.reader(lines, delimiter=delimiter)))


def flattened(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of strings: a column for each key of a dictionary, other values as JSON."""
    flat: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= flattened({f"{name}.{key}": each for key, each in value.items()})
        elif value is None:
            flat[name] = ""
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def is_utf8(stream: Any) -> bool:
    """Tell whether a stream can encode every character."""
    return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
