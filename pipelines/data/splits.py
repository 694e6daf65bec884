"""Check the rows of every split, hold out those that are scored, and apply the maxima."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.load import RawSplits
from pipelines.data.local_files import is_local
from pipelines.data.rejected_file import append_rejected, read_lines
from pipelines.data.row_facts import facts_of
from pipelines.data.row_reader import RowReader
from pipelines.data.row_selection import draw_rows, hold_out_rows
from pipelines.data.rows import Examples
from pipelines.data.source import DEFAULT_TEST_FRACTION
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
    """Usable rows: to train on, to choose by, and to report the score of."""

    train: Examples
    held_out: Examples
    """The validation rows; without test rows, those of the reported score too."""
    record: dict[str, Any]
    """Which rows they are and how they were drawn, for task.json."""
    test: Examples | None = None
    """The test rows, which nothing but the reported score looks at."""
    cautions: tuple[str, ...] | None = None
    """What looks wrong with the rows and their labels, if an earlier run has found out."""

    @property
    def scored(self) -> dict[str, Examples]:
        """Return the rows of each split that the run scores; "eval" is the first."""
        reported = {self.record["reported"]: self.reported}
        return {"eval": self.held_out} | reported

    @property
    def reported(self) -> Examples:
        """Return the rows of the reported score."""
        if self.record["reported"] == "eval":
            return self.held_out
        assert self.test is not None
        return self.test


def check_splits(
    task: RowReader, raw: RawSplits, rejected: Path | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """Return the usable rows, held out and drawn by seed, and the task's labels.

    Raise DataError that lists the unusable rows, unless `on_bad_row` is skip: then they are written
    to the file `rejected`, those of a stream while it is read. The labels are those of all usable
    training rows, so that `max_train_rows` does not change the model's head.
    """
    stop = task.dataset.on_bad_row == "stop"
    train = raw.train
    if isinstance(train.rows, Stream):
        check_stream(task, train)
        train = replace(train, rows=replace(train.rows, task=task, rejected=rejected))
    else:
        train = drop_unusable(task, train, None)
    empty = not isinstance(train.rows, Stream) and not train.rows
    labels = None if empty or (stop and train.rejected) else task.labels(train)
    held_out, test = (
        None if each is None else drop_unusable(task, each, labels)
        for each in (raw.held_out, raw.test)
    )
    read = [(raw.train, train), (raw.held_out, held_out), (raw.test, test)]
    check_columns(task, *read)
    scored = [each for each in (held_out, test) if each is not None]
    unusable = [row for each in (train, *scored) for row in each.rejected]
    if labels is None or stop or not all(each.rows for each in scored):
        raise_rejected(unusable, HINT if stop else "")
    assert labels is not None
    splits = draw_splits(task, train, held_out, test)
    if not isinstance(train.rows, Stream):
        list_rejected(splits, rejected)
    return splits, labels


def list_rejected(splits: Splits, rejected: Path | None, *, again: bool = True) -> None:
    """List the unusable rows of all splits in the file `rejected`.

    A stream's file is kept, unless it is read `again` from its begin; training appends to it.
    """
    if rejected is None:
        return
    if again:
        rejected.unlink(missing_ok=True)
    scored = [each for each in (splits.held_out, splits.test) if each is not None]
    unusable = [row for each in (splits.train, *scored) for row in each.rejected]
    append_rejected(rejected, unusable, read_lines(rejected))


def check_stream(task: RowReader, train: Examples) -> None:
    """Raise DataError if the first rows of a skipping stream lack a column.

    Such a stream would skip every row, and training would never end.
    """
    assert isinstance(train.rows, Stream)
    if task.dataset.on_bad_row == "skip":
        origin, records = train.rows.records()
        first = to_examples(islice(records, NUM_FIRST), origin, is_local(task.dataset))
        check_columns(task, (first, drop_unusable(task, first, None)))


def draw_splits(
    task: RowReader, train: Examples, held_out: Examples | None, test: Examples | None
) -> Splits:
    """Hold out training rows for the splits that are not given, and apply the maxima.

    The validation rows are held out first: test rows, too, leave them the same.
    """
    source = task.dataset
    record: dict[str, dict[str, Any]] = {
        "eval": {"split": source.eval_split, "part": "all", "shares_inputs": False},
        "test": {"split": source.test_split, "part": "all", "shares_inputs": False},
    }
    left = 1.0
    if held_out is None:
        train, held_out, method = hold_out(task, train, "eval", source.eval_fraction)
        record["eval"] = {"split": source.train_split, **method}
        left -= source.eval_fraction
    if test is None and source.has_test and not isinstance(train.rows, Stream):
        fraction = source.test_fraction or DEFAULT_TEST_FRACTION
        train, test, method = hold_out(task, train, "test", fraction, left)
        record["test"] = {"split": source.train_split, **method}
    if isinstance(train.rows, Stream):
        record["eval"]["part"] = f"the first {source.max_eval_rows:,} rows"
        record["test"]["part"] = f"the first {source.max_test_rows or 0:,} rows"
        if train.rows.skip:
            record["eval"]["split"] = source.train_split
    else:
        train = draw_at_most(task, train, source.max_train_rows)
        held_out = draw_at_most(task, held_out, source.max_eval_rows)
        test = None if test is None else draw_at_most(task, test, source.max_test_rows)
    drawn = {
        "reported": source.reported_split,
        "train": {"split": source.train_split, **num_drawn(train)},
        "eval": record["eval"] | num_drawn(held_out),
        **({} if test is None else {"test": record["test"] | num_drawn(test)}),
        "split_seed": source.split_seed,
        "stratified_by": task.stratified_by,
        "grouped_by": task.grouped_by,
    }
    return Splits(train, held_out, drawn, test)


def num_drawn(examples: Examples) -> dict[str, int | None]:
    """Return the numbers of rows, and of those they were drawn from.

    Both are None for a stream.
    """
    if isinstance(examples.rows, Stream):
        return {"rows": None, "of": None}
    num_rows = examples.num_rows
    return {"rows": num_rows, "of": num_rows if examples.total is None else examples.total}


def hold_out(
    task: RowReader, examples: Examples, name: str, fraction: float, left: float = 1.0
) -> tuple[Examples, Examples, dict[str, Any]]:
    """Return the remaining rows, a `fraction` of all training rows, and how they were drawn.

    `examples` are what is `left` of these, as a fraction. A single document is cut at a character.
    Rows with the same input stay together; if that is impossible, because all have the same one,
    say, single rows are drawn. Raise DataError if no row can be held out.
    """
    seed, num_rows = task.dataset.split_seed, examples.num_rows
    percent, share = f"{100 * fraction:.3g} %", fraction / left
    if num_rows == 1 and task.document_column is not None:
        (row,) = examples.rows
        text = row[task.document_column]
        cut = round(len(text) * (1 - share))
        head, tail = ([row | {task.document_column: part}] for part in (text[:cut], text[cut:]))
        before = "" if left == 1 else " before the validation part"
        method = {"part": f"the last {percent} of the text{before}", "shares_inputs": False}
        return replace(examples, rows=head), replace(examples, rows=tail, rejected=()), method
    groups, labels = groups_and_labels(task, examples)
    chosen = hold_out_rows(groups, labels, share, seed)
    method = {"part": f"{percent} of the rows", "shares_inputs": not chosen}
    if not chosen:
        chosen = hold_out_rows(range(num_rows), labels, share, seed)
    if not chosen:
        reason = "there is only one" if num_rows == 1 else "every label would lose its only row"
        raise DataError(
            f"{examples.origin}: none of its rows ({num_rows:,}) can be held out: {reason}. Give "
            "a folder with one file for each split, and name the other with "
            f"--task.dataset.{name}-split."
        )
    held_out = set(chosen)
    remaining = (index for index in range(num_rows) if index not in held_out)
    return examples.select(remaining), replace(examples.select(chosen), rejected=()), method


def draw_at_most(task: RowReader, examples: Examples, count: int | None) -> Examples:
    """Return at most `count` rows, drawn by seed, in their order."""
    if count is None or examples.num_rows <= count:
        return examples
    drawn = draw_rows(*groups_and_labels(task, examples), count, task.dataset.split_seed)
    return replace(examples.select(drawn), total=examples.total or examples.num_rows)


def groups_and_labels(
    task: RowReader, examples: Examples
) -> tuple[Sequence[Hashable], Sequence[Sequence[str]]]:
    """Return the group and the labels of each row."""
    return facts_of(task, examples, "groups"), facts_of(task, examples, "labels")


def describe_part(record: Mapping[str, Any]) -> str:
    """Return which rows of a data set a split's record names."""
    split = str(record["split"])
    return split if record["part"] == "all" else f"{record['part']} of {split}"


def num_skipped(splits: Splits, rejected: Path | None) -> dict[str, int]:
    """Return the numbers of unusable reported and training rows that are above 0.

    Those of a stream are counted in the file `rejected`.
    """
    num_train = len(splits.train.rejected)
    if isinstance(splits.train.rows, Stream):
        scored = [splits.held_out, *([] if splits.test is None else [splits.test])]
        num_train = len(read_lines(rejected)) - sum(len(each.rejected) for each in scored)
    counts = {"rows_skipped": len(splits.reported.rejected), "train_rows_skipped": num_train}
    return {name: count for name, count in counts.items() if count > 0}
