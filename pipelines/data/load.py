"""Read the splits of a DatasetSource."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.data.hub_datasets import class_labels, hub_dataset
from pipelines.data.local_files import is_local, split_files
from pipelines.data.readers import describe_format, features_of, read_files, read_records
from pipelines.data.row_selection import shuffled
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.data.stream import Stream, origin_of
from pipelines.data.validate import raise_rejected, to_examples
from pipelines.errors import DataError

MIN_PART = 100_000  # rows; smaller Hub datasets are read whole


@dataclass(frozen=True)
class RawSplits:
    """Rows as they were read; `held_out` is None if it is to be drawn from `train`."""

    train: Examples
    held_out: Examples | None


def load_splits(source: DatasetSource) -> RawSplits:
    """Read all rows of both splits; unreadable lines are listed in `rejected`."""
    if source.streaming:
        return stream_splits(source)
    eval_split = separate_split(source)
    train_rows = source.max_train_rows if eval_split else None
    return RawSplits(
        load_split(source, source.train_split, train_rows),
        load_split(source, eval_split, source.max_eval_rows) if eval_split else None,
    )


def separate_split(source: DatasetSource) -> str | None:
    """Return the evaluation split, or None to hold out training rows.

    A single file has no splits: rows of it are held out even if `eval_split` is given.
    """
    if source.eval_split is None or not is_local(source):
        return source.eval_split
    train = split_files(source, source.train_split)
    held_out = split_files(source, source.eval_split)
    if train == held_out:
        return None
    for file in held_out:
        same = next((other for other in train if other.samefile(file)), None)
        if same is not None:
            raise DataError(
                f"{file} is {same}: the score would be of the training rows. Name another "
                "--task.dataset.eval-split."
            )
    return source.eval_split


def stream_splits(source: DatasetSource) -> RawSplits:
    """Evaluate on `eval_split`, or on the first rows, which training then skips."""
    if source.max_eval_rows is None:
        raise DataError(
            f"{source.path}: a stream is scored on a fixed number of rows. "
            "Set --task.dataset.max-eval-rows."
        )
    eval_split = separate_split(source)
    split = eval_split or source.train_split
    origin, records = Stream(replace(source, max_train_rows=source.max_eval_rows), split).records()
    held_out = to_examples(records, origin, is_local(source))
    skip = 0 if eval_split else source.max_eval_rows
    train = Examples(
        Stream(source, source.train_split, skip), f"{source.path} {source.train_split}"
    )
    return RawSplits(train, held_out)


def load_split(source: DatasetSource, split: str, max_rows: int | None = None) -> Examples:
    """Read one split from the Hub or from its files.

    If a Hub dataset is far larger than `max_rows`, only a random part of it becomes Python objects;
    `max_rows` of them are drawn later, stratified by label.
    """
    if is_local(source):
        files = split_files(source, split)
        examples = to_examples(read_files(files), origin_of(files), local=True)
        return replace(examples, label_names=class_labels(features_of(files[0])))
    dataset = hub_dataset(source, split, streaming=False)
    total, numbers = len(dataset), None
    if max_rows is not None and total > (part := max(MIN_PART, 10 * max_rows)):
        numbers = shuffled(range(total), source.split_seed)[:part]
        numbers.sort()
        dataset = dataset.select(numbers)
    return Examples(
        dataset.to_list(),
        f"{source.path} {split}",
        label_names=class_labels(dataset.features),
        numbers=numbers,
        total=None if numbers is None else total,
    )


def describe_formats(source: DatasetSource) -> Iterator[str]:
    """Yield the formats of local files that their suffixes do not tell.

    Only the first file of each split is read.
    """
    if is_local(source):
        splits = (source.train_split, separate_split(source))
        files = {split_files(source, split)[0]: None for split in splits if split is not None}
        yield from filter(None, map(describe_format, files))


def read_file(file: Path) -> Examples:
    """Read a local file. Raise DataError if it has no rows, or unreadable lines."""
    examples = to_examples(read_records(file), str(file), local=True)
    raise_rejected(examples.rejected)
    return replace(examples, label_names=class_labels(features_of(file)))
