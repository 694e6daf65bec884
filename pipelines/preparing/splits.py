"""Check and split rows once: later runs find which rows are in which split."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.data.load import RawSplits
from pipelines.data.rows import Examples, Rejected
from pipelines.data.rows_on_disk import ChunkFile, ChunkFileWriter, RowsOnDisk
from pipelines.data.splits import Splits, check_splits, list_rejected
from pipelines.preparing.store import Store
from pipelines.recipe.schema import to_json_value
from pipelines.reporting.cautions import cautions_of_rows
from pipelines.reporting.labels import count_labels
from pipelines.tasks.base import Task

SPLITS = "splits.json"


def check_prepared(
    task: Task, raw: RawSplits, rejected: Path | None, store: Store
) -> tuple[Splits, tuple[str, ...]]:
    """Check and split rows as `check_splits` does; of rows on disk, only once."""
    given = [each for each in (raw.train, raw.held_out, raw.test) if each is not None]
    if not any(isinstance(each.rows, RowsOnDisk) for each in given):
        return check_splits(task, raw, rejected)
    key = {
        "task": {type(task).__name__: to_json_value(task)},
        "rows": [
            None if each is None else row_key(each) for each in (raw.train, raw.held_out, raw.test)
        ],
        "labels": [each.label_names for each in given],
    }

    def build(folder: Path) -> None:
        with store.progress.phase("reading", "checking and splitting the rows"):
            splits, labels = check_splits(task, raw)
            cautions = [*cautions_of_rows(task, splits, labels)]
            write_splits(folder, task, splits, labels, cautions, given)

    num_rows = sum(each.num_rows for each in given)
    folder = store.folder("splits", key, build, num_bytes=8 * num_rows)
    splits, labels = open_splits(folder, given)
    if rejected is not None:
        list_rejected(splits, rejected)
    return splits, labels


def row_key(examples: Examples) -> str:
    """Return what identifies the rows that were read."""
    rows = examples.rows
    return rows.key if isinstance(rows, RowsOnDisk) else examples.fingerprint()


def write_splits(
    folder: Path,
    task: Task,
    splits: Splits,
    labels: tuple[str, ...],
    cautions: Sequence[str],
    given: Sequence[Examples],
) -> None:
    """Write which of the `given` rows are in which split, and which cannot be used."""
    parts = {"train": splits.train, "eval": splits.held_out}
    if splits.test is not None:
        parts["test"] = splits.test
    content = {
        "record": splits.record,
        "labels": labels,
        "cautions": cautions,
        "parts": {
            name: write_part(folder, name, task, each, given) for name, each in parts.items()
        },
    }
    (folder / SPLITS).write_text(json.dumps(content))


def open_splits(folder: Path, given: Sequence[Examples]) -> tuple[Splits, tuple[str, ...]]:
    """Return the splits and the labels that `write_splits` has written."""
    content = json.loads((folder / SPLITS).read_text())
    parts = {
        name: open_part(folder, name, each, given[each["of"]])
        for name, each in content["parts"].items()
    }
    splits = Splits(
        parts["train"],
        parts["eval"],
        content["record"],
        parts.get("test"),
        tuple(content["cautions"]),
    )
    return splits, tuple(content["labels"])


def write_part(
    folder: Path, name: str, task: Task, part: Examples, given: Sequence[Examples]
) -> dict[str, Any]:
    """Write the positions of a split's rows among those it comes from, and return the rest.

    A document that was cut is no row of these: its text is written.
    """
    of, positions = find_rows(part, given)
    entry: dict[str, Any] = {"of": of, "total": part.total}
    entry |= {"sha256": part.fingerprint(), "label_counts": count_labels(task, part)}
    if positions is None:
        number = part.row_number(0)
        raw = given[of]
        positions = [p for p in range(raw.num_rows) if raw.row_number(p) == number]
        writer = ChunkFileWriter(folder / f"{name}.arrows")
        for row in part.rows:
            writer.write(row)
        chunks = writer.close()
        entry["chunks"] = [[*chunks.offsets], [*chunks.starts]]
    (folder / f"{name}.int64").write_bytes(array("q", positions).tobytes())
    return entry | {"rejected": [*describe_rejected(part, given[of])]}


def open_part(folder: Path, name: str, entry: dict[str, Any], raw: Examples) -> Examples:
    """Return a split of `raw` rows."""
    part = raw.select(array("q", (folder / f"{name}.int64").read_bytes()))
    rows, sha256, counts = part.rows, entry["sha256"], entry["label_counts"]
    if "chunks" in entry:
        chunks = ChunkFile(folder / f"{name}.arrows", *entry["chunks"])
        rows = RowsOnDisk(chunks, sha256, None, sha256, counts)
    elif isinstance(rows, RowsOnDisk):
        rows = RowsOnDisk(rows.chunks, rows.key, rows.indices, sha256, counts)
    rejected = tuple(read_rejected(each, raw) for each in entry["rejected"])
    return replace(part, rows=rows, total=entry["total"], rejected=rejected)


def find_rows(part: Examples, given: Sequence[Examples]) -> tuple[int, Sequence[int] | None]:
    """Return which of the `given` rows a split comes from, and its positions there.

    There are no positions for a document that was cut.
    """
    rows = part.rows
    for of, raw in enumerate(given):
        before = raw.rows
        if isinstance(rows, RowsOnDisk) and isinstance(before, RowsOnDisk):
            if rows.chunks is before.chunks:
                return of, positions_in(before, rows)
        elif isinstance(rows, list) and isinstance(before, list):
            place = {id(row): position for position, row in enumerate(before)}
            if all(id(row) in place for row in rows):
                return of, [place[id(row)] for row in rows]
    return next(of for of, raw in enumerate(given) if raw.origin == part.origin), None


def positions_in(rows: RowsOnDisk, chosen: RowsOnDisk) -> Sequence[int]:
    """Return the positions of some rows among all; both are parts of the same chunks."""
    if chosen.indices is None:
        return range(len(chosen))
    if rows.indices is None:
        return chosen.indices
    place = {number: position for position, number in enumerate(rows.indices)}
    return array("q", map(place.__getitem__, chosen.indices))


def describe_rejected(part: Examples, raw: Examples) -> Iterator[dict[str, Any]]:
    """Yield the unusable rows of a split: positions of unreadable lines, or of rows, with reasons.

    Their texts and files are those of `raw`, which may have moved when they are read.
    """
    if not part.rejected:
        return
    unreadable = {id(each): position for position, each in enumerate(raw.rejected)}
    rows = {raw.row_number(position): position for position in range(raw.num_rows)}
    for each in part.rejected:
        if id(each) in unreadable:
            yield {"unreadable": unreadable[id(each)]}
        else:
            yield {"row": rows[each.line], "reason": each.reason}


def read_rejected(entry: dict[str, Any], raw: Examples) -> Rejected:
    """Return an unusable row that `describe_rejected` has described."""
    if "unreadable" in entry:
        return raw.rejected[int(entry["unreadable"])]
    position = int(entry["row"])
    assert isinstance(raw.rows, Sequence)
    row, location = raw.rows[position], raw.locate(position)
    return Rejected(raw.origin, raw.row_number(position), location, entry["reason"], row)
