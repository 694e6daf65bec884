"""Read the splits of a DatasetSource."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.data.hub_datasets import class_labels, hub_dataset
from pipelines.data.local_files import is_local, split_files
from pipelines.data.readers import describe_format, features_of, read_files, read_records
from pipelines.data.row_selection import shuffled
from pipelines.data.rows import Examples
from pipelines.data.rows_on_disk import HubChunks, RowsOnDisk
from pipelines.data.source import DatasetSource
from pipelines.data.stream import Stream, origin_of
from pipelines.data.validate import raise_rejected, to_examples
from pipelines.errors import DataError

MIN_PART = 100_000  # rows; smaller Hub datasets are read whole
LARGE = 8_000_000  # bytes; rows of smaller Hub datasets and files are held in memory

ReadFiles = Callable[[tuple[Path, ...]], Examples]
"""Returns the rows of a split's files; unreadable lines are in `rejected`."""


@dataclass(frozen=True)
class RawSplits:
    """Rows as they were read; `held_out` and `test` are None if they are to be held out."""

    train: Examples
    held_out: Examples | None
    test: Examples | None = None


def read_into_memory(files: tuple[Path, ...]) -> Examples:
    """Return the rows of a split's files, as Python objects."""
    return to_examples(read_files(files), origin_of(files), local=True)


def load_splits(source: DatasetSource, read: ReadFiles = read_into_memory) -> RawSplits:
    """Read all rows of every split; unreadable lines are listed in `rejected`.

    `read` reads local files.
    """
    if source.streaming:
        return stream_splits(source)
    eval_split, test_split = separate_splits(source)
    holds_out = eval_split is None or (test_split is None and source.has_test)
    return RawSplits(
        load_split(source, source.train_split, None if holds_out else source.max_train_rows, read),
        load_split(source, eval_split, source.max_eval_rows, read) if eval_split else None,
        load_split(source, test_split, source.max_test_rows, read) if test_split else None,
    )


def separate_splits(source: DatasetSource) -> tuple[str | None, str | None]:
    """Return the validation and the test split, None for one to hold out of the training rows.

    A single file has no splits: rows of it are held out even if they are named. Raise DataError
    for a file of two splits.
    """
    named = {"eval": source.eval_split, "test": source.test_split}
    if not is_local(source):
        return named["eval"], named["test"]
    seen = {"train": split_files(source, source.train_split)}
    for name, split in named.items():
        files = () if split is None else split_files(source, split)
        if files == seen["train"]:
            named[name] = None
            continue
        check_separate(name, files, seen)
        seen[name] = files
    return named["eval"], named["test"]


def check_separate(
    name: str, files: tuple[Path, ...], others: Mapping[str, tuple[Path, ...]]
) -> None:
    """Raise DataError where a file of a split is one of another split."""
    rows = {"train": "training rows", "eval": "validation rows"}
    for file in files:
        for other, their_files in others.items():
            same = next((each for each in their_files if each.samefile(file)), None)
            if same is not None:
                raise DataError(
                    f"{file} is {same}: the score would be of the {rows[other]}. Name another "
                    f"--task.dataset.{name}-split."
                )


def stream_splits(source: DatasetSource) -> RawSplits:
    """Read the first rows of the other splits of a stream.

    Without an `eval_split` these are rows of the training split, which training then skips.
    """
    eval_split, test_split = separate_splits(source)
    held_out = first_rows(source, "eval", eval_split or source.train_split, source.max_eval_rows)
    skip = 0 if eval_split else source.max_eval_rows or 0
    train = Examples(
        Stream(source, source.train_split, skip), f"{source.path} {source.train_split}"
    )
    test = first_rows(source, "test", test_split, source.max_test_rows) if test_split else None
    return RawSplits(train, held_out, test)


def first_rows(source: DatasetSource, name: str, split: str, count: int | None) -> Examples:
    """Return the first rows of a stream's split. Raise DataError if no count is given."""
    if count is None:
        raise DataError(
            f"{source.path}: a stream is scored on a fixed number of rows. "
            f"Set --task.dataset.max-{name}-rows."
        )
    origin, records = Stream(replace(source, max_train_rows=count), split).records()
    return to_examples(records, origin, is_local(source))


def load_split(
    source: DatasetSource,
    split: str,
    max_rows: int | None = None,
    read: ReadFiles = read_into_memory,
) -> Examples:
    """Read one split from the Hub or from its files.

    If a Hub dataset is far larger than `max_rows`, only a random part of it is looked at;
    `max_rows` of them are drawn later, stratified by label.
    """
    if is_local(source):
        files = split_files(source, split)
        return replace(read(files), label_names=class_labels_of(files))
    dataset = hub_dataset(source, split, streaming=False)
    total, numbers = len(dataset), None
    if max_rows is not None and total > (part := max(MIN_PART, 10 * max_rows)):
        numbers = array("q", sorted(shuffled(range(total), source.split_seed)[:part]))
    return Examples(
        hub_rows(dataset, split, numbers),
        f"{source.path} {split}",
        label_names=class_labels(dataset.features),
        numbers=numbers,
        total=None if numbers is None else total,
    )


def class_labels_of(files: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Return the names of each ClassLabel column of a split's files.

    Raise DataError where two files have other names, or another order: an id would mean two labels.
    """
    first = class_labels(features_of(files[0]))
    for file in files[1:]:
        other = class_labels(features_of(file))
        for column in [*first, *other]:
            here, there = other.get(column), first.get(column)
            if here != there:
                raise DataError(
                    f"{file}: the labels of column {column!r} are {listed(here)}, but those of "
                    f"{files[0]} are {listed(there)}. Write both files with the same ClassLabel."
                )
    return first


def listed(names: Sequence[str] | None) -> str:
    """Return the names of a ClassLabel, the first ten of many."""
    if names is None:
        return "not named"
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def hub_rows(dataset: Any, split: str, numbers: Sequence[int] | None) -> Sequence[dict[str, Any]]:
    """Return all rows of a split, or some; those of a large one stay on disk."""
    files = [Path(each["filename"]) for each in dataset.cache_files]
    if dataset.data.nbytes < LARGE or not files:
        rows: list[dict[str, Any]] = (dataset.select(numbers) if numbers else dataset).to_list()
        return rows
    digest = hashlib.sha256(split.encode())  # which may be a part of the files, as train[:10%]
    for each in files:
        with each.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    on_disk = RowsOnDisk(HubChunks(dataset), digest.hexdigest())
    return on_disk if numbers is None else on_disk.select(numbers)


def describe_formats(source: DatasetSource) -> Iterator[str]:
    """Yield the formats of local files that their suffixes do not tell.

    Only the first file of each split is read.
    """
    if is_local(source):
        splits = (source.train_split, *separate_splits(source))
        files = {split_files(source, split)[0]: None for split in splits if split is not None}
        yield from filter(None, map(describe_format, files))


def read_file(file: Path) -> Examples:
    """Read a local file. Raise DataError if it has no rows, or unreadable lines."""
    examples = to_examples(read_records(file), str(file), local=True)
    raise_rejected(examples.rejected)
    return replace(examples, label_names=class_labels(features_of(file)))
