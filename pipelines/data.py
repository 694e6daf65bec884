"""Read a DatasetSource into checked rows that know their file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.local_files import is_local, split_files
from pipelines.readers import describe, features_of, read, read_files
from pipelines.rows import Numbered, Unreadable, location
from pipelines.splits import draw_rows, hold_out_rows, shuffled
from pipelines.tasks import DataError, DatasetSource, Task
from pipelines.tasks.base import Examples, Rejected

SHOWN = 10  # rows that a message names
WIDTH = 300  # characters that it says of each: a row can be long
NUM_FIRST = 100  # rows of a stream whose columns are checked
MIN_PART = 100_000  # rows of a Hub dataset that are always read
HINT = "\nCorrect them, or leave them out with --task.dataset.on-bad-row skip."


@dataclass(frozen=True)
class RawSplits:
    """Rows as they were read. `held_out` is None where it is still to be drawn from `train`."""

    train: Examples
    held_out: Examples | None


@dataclass(frozen=True)
class Splits:
    """Training and evaluation rows that the task can use."""

    train: Examples
    held_out: Examples
    record: dict[str, Any]
    """Where the rows come from and how they were drawn, for task.json."""


@dataclass(frozen=True)
class Stream:
    """Rows that are read each time they are iterated; the first `skip` are left out.

    Those that `task` cannot use are refused when they are met, or appended to `rejected`.
    """

    source: DatasetSource
    split: str
    skip: int = 0
    task: Task | None = None
    rejected: Path | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        origin, records = self.records()
        local, known = is_local(self.source), lines_of(self.rejected)
        for record in records:
            examples = collect([record], origin, local)
            if self.task is not None:
                examples = sift(self.task, examples, None)
            if examples.rejected and self.source.on_bad_row == "stop":
                refuse(examples.rejected, HINT)
            if examples.rejected and self.rejected is not None:
                append_rejected(self.rejected, examples.rejected, known)
            yield from examples.rows

    def fingerprint(self) -> str | None:
        """Return a hash of the files' sizes and starts; the recipe pins the commit of the Hub's."""
        if not is_local(self.source):
            return None
        digest = hashlib.sha256()
        for file in split_files(self.source, self.split):
            with file.open("rb") as content:
                digest.update(str(file.stat().st_size).encode() + content.read(2**20))
        return digest.hexdigest()

    def records(self) -> tuple[str, Iterator[Numbered]]:
        """Return where the rows come from, and the rows with their numbers."""
        rows: Iterable[Numbered]
        if is_local(self.source):
            files = split_files(self.source, self.split)
            origin, rows = origin_of(files), read_files(files)
        else:
            origin = f"{self.source.path} {self.split}"
            rows = enumerate(hub_dataset(self.source, self.split, streaming=True))
        stop = self.source.max_train_rows
        return origin, islice(rows, self.skip, None if stop is None else self.skip + stop)


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
    """Return the split to score on, or None where rows of the training split are held out.

    One file has no splits, so rows of it are held out whatever `eval_split` says.
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
    """Score on `eval_split`, or on the first rows, which are then not trained on."""
    if source.max_eval_rows is None:
        raise DataError(
            f"{source.path}: a stream is scored on a fixed number of rows. "
            "Set --task.dataset.max-eval-rows."
        )
    eval_split = separate_split(source)
    split = eval_split or source.train_split
    origin, records = Stream(replace(source, max_train_rows=source.max_eval_rows), split).records()
    held_out = collect(records, origin, is_local(source))
    skip = 0 if eval_split else source.max_eval_rows
    train = Examples(
        Stream(source, source.train_split, skip), f"{source.path} {source.train_split}"
    )
    return RawSplits(train, held_out)


def load_split(source: DatasetSource, split: str, max_rows: int | None = None) -> Examples:
    """Read one split from the Hub or from its files.

    Of a Hub dataset that is far larger than `max_rows` only a random part becomes Python objects,
    from which `max_rows` are drawn later, by label.
    """
    if is_local(source):
        files = split_files(source, split)
        examples = collect(read_files(files), origin_of(files), local=True)
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


def origin_of(files: Sequence[Path]) -> str:
    """Name the file of a split, or the folder of its files."""
    return str(files[0] if len(files) == 1 else files[0].parent)


def detected(source: DatasetSource) -> Iterator[str]:
    """Yield what each split's first local file was read as, where its suffix does not say."""
    if is_local(source):
        splits = (source.train_split, separate_split(source))
        files = {split_files(source, split)[0]: None for split in splits if split is not None}
        yield from filter(None, map(describe, files))


def read_file(file: Path) -> Examples:
    """Read a local file. Raise DataError for one that has no rows, or lines that are none."""
    examples = collect(read(file), str(file), local=True)
    refuse(examples.rejected)
    return replace(examples, label_names=class_labels(features_of(file)))


def collect(records: Iterable[Numbered], origin: str, local: bool) -> Examples:
    """Split rows from unreadable lines. Raise DataError where there is neither."""
    rows: list[dict[str, Any]] = []
    numbers, rejected = [], []
    for number, row in records:
        if isinstance(row, Unreadable):
            file, line = location(origin, number)
            rejected.append(Rejected(origin, number, f"{file}:{line}", row.reason, row.content))
        else:
            rows.append(row)
            numbers.append(number)
    if not rows and not rejected:
        raise DataError(f"{origin}: no rows.")
    lines, others = (numbers, None) if local else (None, numbers)
    return Examples(rows, origin, lines, numbers=others, rejected=tuple(rejected))


def sift(task: Task, examples: Examples, labels: tuple[str, ...] | None) -> Examples:
    """Return the rows that a task can use; the others are listed in `rejected`, by line."""
    kept, rejected = [], list(examples.rejected)
    for index, row in enumerate(examples.rows):
        try:
            task.example(examples, index, row, labels)
        except DataError as error:
            where = examples.where(index)
            reason = str(error).removeprefix(f"{where}: ")
            number = examples.number(index)
            rejected.append(Rejected(examples.origin, number, where, reason, row))
        else:
            kept.append(index)
    if len(rejected) == len(examples.rejected):
        return examples
    rejected.sort(key=lambda each: each.line)
    return replace(examples.only(kept), rejected=tuple(rejected))


def check_splits(
    task: Task, raw: RawSplits, rejected: Path | None = None
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
        train = sift(task, train, None)
    nothing = not isinstance(train.rows, Stream) and not train.rows
    labels = None if nothing or (stop and train.rejected) else task.labels(train)
    if held_out is not None:
        held_out = sift(task, held_out, labels)
    check_columns(task, (raw.train, train), (raw.held_out, held_out))
    unusable = [*train.rejected, *(held_out.rejected if held_out is not None else ())]
    if labels is None or stop or (held_out is not None and not held_out.rows):
        refuse(unusable, HINT if stop else "")
    assert labels is not None
    splits = draw_splits(task, train, held_out)
    if rejected is not None:
        rejected.unlink(missing_ok=True)
        append_rejected(rejected, unusable, set())
    return splits, labels


def check_columns(task: Task, *splits: tuple[Examples | None, Examples | None]) -> None:
    """Raise DataError where the task can use no row because no row has a column that it reads.

    `splits` are rows as they were read, and the usable ones of them. Thousands of rows that all
    lack the same column are then one line that says which option to change.
    """
    lines = []
    for read_rows, usable in splits:
        if read_rows is None or usable is None or isinstance(read_rows.rows, Stream):
            continue
        if usable.rows or not read_rows.rows:
            continue
        present = list(dict.fromkeys(column for row in read_rows.rows for column in row))
        missing = [
            f"no column {column!r}, which {flag_of(option)} names{similar(column, present)}"
            for option, column in task.columns()
            if column not in present
        ]
        if missing:
            columns = ", ".join(present)
            lines.append(f"{read_rows.origin}: {'; '.join(missing)}. Columns: {columns}.")
    if lines:
        raise DataError("\n".join(lines))


def flag_of(option: str) -> str:
    """Return the flag of a task's option as it is typed."""
    return f"--task.{option.replace('_', '-')}"


def similar(name: str, known: Sequence[str]) -> str:
    """Return a hint that names the most similar of some names, or ""."""
    by_letters = {each.strip().casefold(): each for each in reversed(known)}
    close = get_close_matches(name.strip().casefold(), by_letters, n=1, cutoff=0.5)
    return f" (did you mean {by_letters[close[0]]!r}?)" if close else ""


def check_stream(task: Task, train: Examples) -> None:
    """Raise DataError where the first rows of a stream that skips bad rows lack a column.

    It would skip every row, and never end.
    """
    assert isinstance(train.rows, Stream)
    if task.dataset.on_bad_row == "skip":
        origin, records = train.rows.records()
        first = collect(islice(records, NUM_FIRST), origin, is_local(task.dataset))
        check_columns(task, (first, sift(task, first, None)))


def draw_splits(task: Task, train: Examples, held_out: Examples | None) -> Splits:
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


def hold_out(task: Task, examples: Examples) -> tuple[Examples, Examples, dict[str, Any]]:
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
    return examples.only(left), replace(examples.only(chosen), rejected=()), how


def capped(task: Task, examples: Examples, count: int | None) -> Examples:
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
    return replace(examples.only(drawn), total=examples.total or len(rows))


def refuse(rejected: Sequence[Rejected], hint: str = "") -> None:
    """Raise DataError that names the first rows that cannot be used, if there are any."""
    if not rejected:
        return
    lines = [f"{each.where}: {each.reason[:WIDTH]}" for each in rejected[:SHOWN]]
    if len(rejected) > SHOWN:
        lines.append(f"... and {len(rejected) - SHOWN:,} more.")
    raise DataError("\n".join(lines) + hint)


def num_skipped(splits: Splits, rejected: Path | None) -> dict[str, int]:
    """Return how many rows were left out of the score and of the training, where some were.

    Those of a stream are counted in the file `rejected`.
    """
    num_eval, num_train = len(splits.held_out.rejected), len(splits.train.rejected)
    if isinstance(splits.train.rows, Stream):
        num_train = len(lines_of(rejected)) - num_eval
    found = {"rows_skipped": num_eval, "train_rows_skipped": num_train}
    return {name: count for name, count in found.items() if count > 0}


def lines_of(file: Path | None) -> set[str]:
    """Return the lines of a file, if it is there."""
    if file is None or not file.exists():
        return set()
    return set(file.read_text(encoding="utf-8").splitlines())


def append_rejected(file: Path, rejected: Sequence[Rejected], known: set[str]) -> None:
    """Append rows to rejected.jsonl unless their lines are known, and note them there.

    A stream meets its rows again in each epoch, and when it resumes.
    """
    lines = []
    for each in rejected:
        origin, line = location(each.file, each.line)
        entry = {"file": origin, "line": line, "reason": each.reason, "row": each.row}
        lines.append(json.dumps(entry, default=str))
    new = [line for line in lines if line not in known]
    if new:
        with file.open("a", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in new)
    known.update(new)


def hub_dataset(source: DatasetSource, split: str, *, streaming: bool) -> Any:
    """Load a split through datasets, with further attempts when the Hub fails."""
    from datasets import load_dataset

    from pipelines.hub_client import Hub, HubError

    where: dict[str, Any] = {"revision": source.revision, "streaming": streaming}
    try:
        return Hub().fetch(
            lambda: load_dataset(source.path, source.name, split=split, **where), watched=False
        )
    except HubError as error:
        raise DataError(f"{source.path}: {error}") from error


def class_labels(features: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of each column that is a ClassLabel or a list of them."""
    if features is None:
        return {}
    from datasets import ClassLabel

    inner = {name: getattr(f, "feature", f) for name, f in features.items()}
    return {name: tuple(f.names) for name, f in inner.items() if isinstance(f, ClassLabel)}
