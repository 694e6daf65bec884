"""Check the rows of both splits, hold out evaluation rows, and apply the maxima."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.load import RawSplits
from pipelines.data.local_files import is_local
from pipelines.data.rejected_file import append_rejected, read_lines
from pipelines.data.row_reader import RowReader
from pipelines.data.row_selection import draw_rows, hold_out_rows
from pipelines.data.rows import Examples
from pipelines.data.stream import Stream
from pipelines.data.validate import (
    HINT,
    check_columns,
    drop_unusable,
    raise_rejected,
    to_examples,
)
from pipelines.errors import DataError

NUM_FIRST = 100  # rows of a stream whose columns are checked


@dataclass(frozen=True)
class Splits:
    """Usable training and evaluation rows."""

    train: Examples
    held_out: Examples
    record: dict[str, Any]
    """Which rows they are and how they were drawn, for task.json."""


def check_splits(
    task: RowReader, raw: RawSplits, rejected: Path | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """Return the usable rows, held out and drawn by seed, and the task's labels.

    Raise DataError that lists the unusable rows, unless `on_bad_row` is skip: then they are written
    to the file `rejected`, those of a stream while it is read. The labels are those of all usable
    training rows, so that `max_train_rows` does not change the model's head.
    """
    stop = task.dataset.on_bad_row == "stop"
    train, held_out = raw.train, raw.held_out
    if isinstance(train.rows, Stream):
        check_stream(task, train)
        train = replace(train, rows=replace(train.rows, task=task, rejected=rejected))
    else:
        train = drop_unusable(task, train, None)
    empty = not isinstance(train.rows, Stream) and not train.rows
    labels = None if empty or (stop and train.rejected) else task.labels(train)
    if held_out is not None:
        held_out = drop_unusable(task, held_out, labels)
    check_columns(task, (raw.train, train), (raw.held_out, held_out))
    unusable = [*train.rejected, *(held_out.rejected if held_out is not None else ())]
    if labels is None or stop or (held_out is not None and not held_out.rows):
        raise_rejected(unusable, HINT if stop else "")
    assert labels is not None
    splits = draw_splits(task, train, held_out)
    if rejected is not None:
        rejected.unlink(missing_ok=True)
        append_rejected(rejected, unusable, set())
    return splits, labels


def check_stream(task: RowReader, train: Examples) -> None:
    """Raise DataError if the first rows of a skipping stream lack a column.

    Such a stream would skip every row, and training would never end.
    """
    assert isinstance(train.rows, Stream)
    if task.dataset.on_bad_row == "skip":
        origin, records = train.rows.records()
        first = to_examples(islice(records, NUM_FIRST), origin, is_local(task.dataset))
        check_columns(task, (first, drop_unusable(task, first, None)))


def draw_splits(task: RowReader, train: Examples, held_out: Examples | None) -> Splits:
    """Hold out training rows if there is no evaluation split, and apply both maxima."""
    source = task.dataset
    scored = {"split": source.eval_split, "part": "all", "shares_inputs": False}
    if held_out is None:
        train, held_out, method = hold_out(task, train)
        scored = {"split": source.train_split, **method}
    if isinstance(train.rows, Stream):
        scored["part"] = f"the first {source.max_eval_rows:,} rows"
        if train.rows.skip:
            scored["split"] = source.train_split
    else:
        train = draw_at_most(task, train, source.max_train_rows)
        held_out = draw_at_most(task, held_out, source.max_eval_rows)
    record = {
        "train": {"split": source.train_split, **num_drawn(train)},
        "eval": {**scored, **num_drawn(held_out)},
        "split_seed": source.split_seed,
        "stratified_by": task.stratified_by,
        "grouped_by": task.grouped_by,
    }
    return Splits(train, held_out, record)


def num_drawn(examples: Examples) -> dict[str, int | None]:
    """Return the numbers of rows, and of those they were drawn from.

    Both are None for a stream.
    """
    if isinstance(examples.rows, Stream):
        return {"rows": None, "of": None}
    num_rows = len(list(examples.rows))
    return {"rows": num_rows, "of": num_rows if examples.total is None else examples.total}


def hold_out(task: RowReader, examples: Examples) -> tuple[Examples, Examples, dict[str, Any]]:
    """Return training rows, evaluation rows drawn from them, and how they were drawn.

    A single document is cut at a character. Rows with the same input stay together; if that is
    impossible, because all have the same one, say, single rows are drawn. Raise DataError if no row
    can be held out.
    """
    source, rows = task.dataset, list(examples.rows)
    percent = f"{100 * source.eval_fraction:.3g} %"
    if len(rows) == 1 and task.document_column is not None:
        row, text = rows[0], rows[0][task.document_column]
        cut = round(len(text) * (1 - source.eval_fraction))
        head, tail = ([row | {task.document_column: part}] for part in (text[:cut], text[cut:]))
        method = {"part": f"the last {percent} of the text", "shares_inputs": False}
        return replace(examples, rows=head), replace(examples, rows=tail, rejected=()), method
    groups = [task.group(row) for row in rows]
    labels = [task.row_labels(examples, index, row) for index, row in enumerate(rows)]
    chosen = hold_out_rows(groups, labels, source.eval_fraction, source.split_seed)
    method = {"part": f"{percent} of the rows", "shares_inputs": not chosen}
    if not chosen:
        chosen = hold_out_rows(range(len(rows)), labels, source.eval_fraction, source.split_seed)
    if not chosen:
        reason = "there is only one" if len(rows) == 1 else "every label would lose its only row"
        raise DataError(
            f"{examples.origin}: none of its rows ({len(rows):,}) can be held out: {reason}. Give "
            "a folder with one file for each split, and name the second with "
            "--task.dataset.eval-split."
        )
    remaining = sorted(set(range(len(rows))) - set(chosen))
    return examples.select(remaining), replace(examples.select(chosen), rejected=()), method


def draw_at_most(task: RowReader, examples: Examples, count: int | None) -> Examples:
    """Return at most `count` rows, drawn by seed, in their order."""
    rows = list(examples.rows)
    if count is None or len(rows) <= count:
        return examples
    drawn = draw_rows(
        [task.group(row) for row in rows],
        [task.row_labels(examples, index, row) for index, row in enumerate(rows)],
        count,
        task.dataset.split_seed,
    )
    return replace(examples.select(drawn), total=examples.total or len(rows))


def num_skipped(splits: Splits, rejected: Path | None) -> dict[str, int]:
    """Return the numbers of unusable evaluation and training rows that are above 0.

    Those of a stream are counted in the file `rejected`.
    """
    num_eval, num_train = len(splits.held_out.rejected), len(splits.train.rejected)
    if isinstance(splits.train.rows, Stream):
        num_train = len(read_lines(rejected)) - num_eval
    counts = {"rows_skipped": num_eval, "train_rows_skipped": num_train}
    return {name: count for name, count in counts.items() if count > 0}
