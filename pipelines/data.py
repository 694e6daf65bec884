"""Read a DatasetSource into checked rows that know their file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.readers import SUFFIXES, Numbered, Unreadable, read
from pipelines.tasks import DataError, DatasetSource, Task
from pipelines.tasks.base import Examples, Rejected, token_ids

SHOWN = 10  # rows that a message names
WIDTH = 300  # characters that it says of each: a row can be long
HINT = "\nCorrect them, or leave them out with --task.dataset.on-bad-row skip."


@dataclass(frozen=True)
class Splits:
    """Training and evaluation rows."""

    train: Examples
    held_out: Examples

    def num_shared(self) -> int:
        """Return how many evaluation rows are training rows too; 0 for a stream."""
        if isinstance(self.train.rows, Stream):
            return 0
        seen = set(self.train.hashes())
        return sum(digest in seen for digest in self.held_out.hashes())

    def warnings(self) -> Iterator[str]:
        """Say what makes a score other than it seems: rows left out, or there twice."""
        for name, examples in (("training", self.train), ("evaluation", self.held_out)):
            if examples.rejected:
                yield (
                    f"{len(examples.rejected):,} {name} rows cannot be used and were left out; "
                    "they stand in rejected.jsonl"
                )
            if not isinstance(examples.rows, Stream):
                ids = [str(row["id"]) for row in examples.rows if "id" in row]
                if len(set(ids)) < len(ids):
                    yield f"{len(ids) - len(set(ids)):,} {name} rows have the id of another"
        num_shared = self.num_shared()
        if num_shared:
            yield f"{num_shared:,} evaluation rows are training rows too: the score is too good"


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
        """Return a hash of a file's size and start, to tell another; the recipe pins the Hub's."""
        if not is_local(self.source):
            return None
        file = local_file(self.source, self.split)
        with file.open("rb") as content:
            start = content.read(2**20)
        return hashlib.sha256(str(file.stat().st_size).encode() + start).hexdigest()

    def records(self) -> tuple[str, Iterator[Numbered]]:
        """Return where the rows come from, and the rows with their numbers."""
        rows: Iterable[Numbered]
        if is_local(self.source):
            file = local_file(self.source, self.split)
            origin, rows = str(file), read(file)
        else:
            origin = f"{self.source.path} {self.split}"
            rows = enumerate(hub_dataset(self.source, self.split, streaming=True))
        stop = self.source.max_train_rows
        return origin, islice(rows, self.skip, None if stop is None else self.skip + stop)


def load_splits(source: DatasetSource) -> Splits:
    """Read both splits; lines that are no rows stand in their `rejected`."""
    if source.streaming:
        return stream_splits(source)
    if source.eval_split is not None:
        return Splits(
            load_split(source, source.train_split, source.max_train_rows),
            load_split(source, source.eval_split, source.max_eval_rows),
        )
    train, held_out = hold_out(load_split(source, source.train_split), source.eval_fraction)
    return Splits(first(train, source.max_train_rows), first(held_out, source.max_eval_rows))


def stream_splits(source: DatasetSource) -> Splits:
    """Score on `eval_split`, or on the first rows, which are then not trained on."""
    if source.max_eval_rows is None:
        raise DataError(
            f"{source.path}: a stream is scored on a fixed number of rows. "
            "Set --task.dataset.max-eval-rows."
        )
    split = source.eval_split or source.train_split
    origin, records = Stream(replace(source, max_train_rows=source.max_eval_rows), split).records()
    held_out = collect(records, origin, is_local(source))
    skip = 0 if source.eval_split else source.max_eval_rows
    train = Examples(
        Stream(source, source.train_split, skip), f"{source.path} {source.train_split}"
    )
    return Splits(train, held_out)


def load_split(source: DatasetSource, split: str, max_rows: int | None = None) -> Examples:
    """Read one split, or its first rows, from the Hub or from its file."""
    if not is_local(source):
        dataset = hub_dataset(source, split, streaming=False)
        if max_rows is not None:
            dataset = dataset.take(min(max_rows, len(dataset)))
        return Examples(
            dataset.to_list(), f"{source.path} {split}", label_names=class_labels(dataset)
        )
    file = local_file(source, split)
    return collect(read(file), str(file), local=True, max_rows=max_rows)


def read_file(file: Path) -> Examples:
    """Read a local file. Raise DataError for one that has no rows, or lines that are none."""
    examples = collect(read(file), str(file), local=True)
    refuse(examples.rejected)
    return examples


def collect(
    records: Iterable[Numbered], origin: str, local: bool, max_rows: int | None = None
) -> Examples:
    """Part the first rows from the lines between them that are none.

    Raise DataError where there is neither.
    """
    rows: list[dict[str, Any]] = []
    numbers, rejected = [], []
    for number, row in records:
        if len(rows) == max_rows:
            break
        if isinstance(row, Unreadable):
            where = f"{origin}:{number}"
            rejected.append(Rejected(origin, number, where, row.reason, row.content))
        else:
            rows.append(row)
            numbers.append(number)
    if not rows and not rejected:
        raise DataError(f"{origin}: no rows.")
    lines, others = (numbers, None) if local else (None, numbers)
    return Examples(rows, origin, lines, numbers=others, rejected=tuple(rejected))


def sift(task: Task, examples: Examples, labels: tuple[str, ...] | None) -> Examples:
    """Return the rows that a task can use; the others stand in `rejected`, by their lines."""
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
    task: Task, splits: Splits, rejected: Path | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """Return the rows that a task can use, and its labels.

    Raise DataError that names all others, unless they are to be skipped: then they are written to
    the file `rejected`, those of a stream when it meets them.
    """
    stop = task.dataset.on_bad_row == "stop"
    train = splits.train
    if isinstance(train.rows, Stream):
        train = replace(train, rows=replace(train.rows, task=task, rejected=rejected))
    else:
        train = sift(task, train, None)
    nothing = not isinstance(train.rows, Stream) and not train.rows
    labels = None if nothing or (stop and train.rejected) else task.labels(train)
    held_out = sift(task, splits.held_out, labels)
    found = [*train.rejected, *held_out.rejected]
    if labels is None or stop or not held_out.rows:
        refuse(found, HINT if stop else "")
    assert labels is not None
    if rejected is not None:
        rejected.unlink(missing_ok=True)
        append_rejected(rejected, found, set())
    return Splits(train, held_out), labels


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
    lines = [
        json.dumps({"file": r.file, "line": r.line, "reason": r.reason, "row": r.row}, default=str)
        for r in rejected
    ]
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


def check_vocabulary(examples: Examples, tokenizer: Any, num_embeddings: int) -> None:
    """Raise DataError for the first row with a token that the model has no embedding for."""
    if len(tokenizer) <= num_embeddings:
        return
    for index, row in enumerate(examples.rows):
        for text in (value for value in row.values() if isinstance(value, str)):
            ids = token_ids(tokenizer, [text])[0]
            if ids and max(ids) >= num_embeddings:
                token = tokenizer.convert_ids_to_tokens(max(ids))
                raise DataError(
                    f"{examples.where(index)}: {token!r} is token {max(ids)}, beyond the model's "
                    f"vocabulary of {num_embeddings}: tokenizer and model do not match."
                )


def class_labels(dataset: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of each column that is a ClassLabel or a list of them."""
    from datasets import ClassLabel

    inner = {name: getattr(f, "feature", f) for name, f in dataset.features.items()}
    return {name: tuple(f.names) for name, f in inner.items() if isinstance(f, ClassLabel)}


def is_local(source: DatasetSource) -> bool:
    """Tell a path from a Hub id. Raise DataError for a path that is not there."""
    path = Path(source.path)
    if path.exists():
        return True
    named = path.suffix in SUFFIXES or path.is_absolute() or source.path.startswith(".")
    if named or source.path.count("/") > 1:
        raise DataError(f"{source.path}: no such file or folder.")
    return False


def local_file(source: DatasetSource, split: str) -> Path:
    """Return the file of a split."""
    path = Path(source.path)
    if path.is_file():
        return path
    for suffix in SUFFIXES:
        if (path / f"{split}{suffix}").is_file():
            return path / f"{split}{suffix}"
    found = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
    raise DataError(f"{path}: no file for split {split!r} ({found} there).")


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """Split off the last rows; a single document is cut at a character."""
    rows = list(examples.rows)
    if len(rows) == 1 and isinstance(rows[0].get("text"), str):
        text = rows[0]["text"]
        cut = round(len(text) * (1 - fraction))
        head, tail = text[:cut], text[cut:]
        return replace(examples, rows=[rows[0] | {"text": head}]), replace(
            examples, rows=[rows[0] | {"text": tail}], rejected=()
        )
    if len(rows) < 2:
        refuse(examples.rejected)
        raise DataError(f"{examples.origin}: {len(rows)} rows cannot be split.")
    cut = len(rows) - max(1, round(len(rows) * fraction))
    bound = examples.number(cut)
    early = tuple(each for each in examples.rejected if each.line < bound)
    late = tuple(each for each in examples.rejected if each.line >= bound)
    return (
        replace(examples.only(range(cut)), rejected=early),
        replace(examples.only(range(cut, len(rows))), rejected=late),
    )


def first(examples: Examples, count: int | None) -> Examples:
    """Keep the first rows, and of those that cannot be used the ones between them."""
    if count is None or len(list(examples.rows)) <= count:
        return examples
    bound = examples.number(count)
    early = tuple(each for each in examples.rejected if each.line < bound)
    return replace(examples.only(range(count)), rejected=early)
