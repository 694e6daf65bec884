"""Read a DatasetSource into checked rows that know their file and line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.load import RawSplits
from pipelines.data.local_files import is_local
from pipelines.data.row_reader import RowReader
from pipelines.data.row_selection import draw_rows, hold_out_rows
from pipelines.data.rows import Examples
from pipelines.data.stream import Stream
from pipelines.data.validate import (
    HINT,
    append_rejected,
    check_columns,
    drop_unusable,
    lines_of,
    raise_rejected,
    to_examples,
)
from pipelines.errors import DataError

NUM_FIRST = 100  # rows of a stream whose columns are checked


@dataclass(frozen=True)
class Splits:
    """Training and evaluation rows that the task can use."""

    train: Examples
    held_out: Examples
    record: dict[str, Any]
    """Where the rows come from and how they were drawn, for task.json."""


def check_splits(
    task: RowReader, raw: RawSplits, rejected: Path | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """Return the rows that a task can use, held out and capped by seed, and its labels.

    Raise DataError that names all others, unless they are to be skipped: then they are written to
    the file `rejected`, those of a stream when it meets them. The labels are those of all usable
    training rows, so that `max_train_rows` does not change the model's head.
    """
    stop = task.dataset.on_bad_row == "stop"
    train, held_out = raw.train, raw.held_out
    if isinstance(train.rows, Stream):
        check_stream(task, train)
        train = replace(train, rows=replace(train.rows, task=task, rejected=rejected))
    else:
        train = drop_unusable(task, train, None)
    nothing = not isinstance(train.rows, Stream) and not train.rows
    labels = None if nothing or (stop and train.rejected) else task.labels(train)
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
    """Raise DataError where the first rows of a stream that skips bad rows lack a column.

    It would skip every row, and never end.
    """
    assert isinstance(train.rows, Stream)
    if task.dataset.on_bad_row == "skip":
        origin, records = train.rows.records()
        first = to_examples(islice(records, NUM_FIRST), origin, is_local(task.dataset))
        check_columns(task, (first, drop_unusable(task, first, None)))


def draw_splits(task: RowReader, train: Examples, held_out: Examples | None) -> Splits:
    """Hold out training rows where there are no others, and apply the maximum of both splits."""
    source = task.dataset
    scored = {"split": source.eval_split, "part": "all", "shares_inputs": False}
    if held_out is None:
        train, held_out, how = hold_out(task, train)
        scored = {"split": source.train_split, **how}
    if isinstance(train.rows, Stream):
        scored["part"] = f"the first {source.max_eval_rows:,} rows"
        if train.rows.skip:
            scored["split"] = source.train_split
    else:
        train = capped(task, train, source.max_train_rows)
        held_out = capped(task, held_out, source.max_eval_rows)
    record = {
        "train": {"split": source.train_split, **num_drawn(train)},
        "eval": {**scored, **num_drawn(held_out)},
        "split_seed": source.split_seed,
        "stratified_by": task.stratified_by,
        "grouped_by": task.grouped_by,
    }
    return Splits(train, held_out, record)


def num_drawn(examples: Examples) -> dict[str, int | None]:
    """Return how many rows there are, and how many they were drawn from; None for a stream."""
    if isinstance(examples.rows, Stream):
        return {"rows": None, "of": None}
    num_rows = len(list(examples.rows))
    return {"rows": num_rows, "of": num_rows if examples.total is None else examples.total}


def hold_out(task: RowReader, examples: Examples) -> tuple[Examples, Examples, dict[str, Any]]:
    """Return training rows, rows drawn from them to score on, and how they were drawn.

    A single document is cut at a character. Where the rows that share an input cannot be kept
    together, since all share it, say, single rows are drawn. Raise DataError if none can be.
    """
    source, rows = task.dataset, list(examples.rows)
    percent = f"{100 * source.eval_fraction:.3g} %"
    if len(rows) == 1 and task.document_column is not None:
        row, text = rows[0], rows[0][task.document_column]
        cut = round(len(text) * (1 - source.eval_fraction))
        head, tail = ([row | {task.document_column: part}] for part in (text[:cut], text[cut:]))
        how = {"part": f"the last {percent} of the text", "shares_inputs": False}
        return replace(examples, rows=head), replace(examples, rows=tail, rejected=()), how
    groups = [task.group(row) for row in rows]
    labels = [task.row_labels(examples, index, row) for index, row in enumerate(rows)]
    chosen = hold_out_rows(groups, labels, source.eval_fraction, source.split_seed)
    how = {"part": f"{percent} of the rows", "shares_inputs": not chosen}
    if not chosen:
        chosen = hold_out_rows(range(len(rows)), labels, source.eval_fraction, source.split_seed)
    if not chosen:
        reason = "there is only one" if len(rows) == 1 else "every label would lose its only row"
        raise DataError(
            f"{examples.origin}: none of its rows ({len(rows):,}) can be held out: {reason}. Give "
            "a folder with one file for each split, and name the second with "
            "--task.dataset.eval-split."
        )
    left = sorted(set(range(len(rows))) - set(chosen))
    return examples.select(left), replace(examples.select(chosen), rejected=()), how


def capped(task: RowReader, examples: Examples, count: int | None) -> Examples:
    """Return `count` rows drawn by seed, in their order, or all."""
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
    """Return how many rows were left out of the score and of the training, where some were.

    Those of a stream are counted in the file `rejected`.
    """
    num_eval, num_train = len(splits.held_out.rejected), len(splits.train.rejected)
    if isinstance(splits.train.rows, Stream):
        num_train = len(lines_of(rejected)) - num_eval
    found = {"rows_skipped": num_eval, "train_rows_skipped": num_train}
    return {name: count for name, count in found.items() if count > 0}
