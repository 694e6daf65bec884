"""Read a DatasetSource into checked rows that know their file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.tasks import DataError, DatasetSource
from pipelines.tasks.base import Examples

SUFFIXES = (".jsonl", ".csv", ".txt", ".json")


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


@dataclass(frozen=True)
class Stream:
    """Rows that are read each time they are iterated; the first `skip` are left out."""

    source: DatasetSource
    split: str
    skip: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows: Iterable[dict[str, Any]]
        if is_local(self.source):
            rows = (row for _, row in read(local_file(self.source, self.split)))
        else:
            rows = hub_dataset(self.source, self.split, streaming=True)
        stop = self.source.max_train_rows
        return islice(rows, self.skip, None if stop is None else self.skip + stop)


def load_splits(source: DatasetSource) -> Splits:
    """Read both splits. Raise DataError with file and line for what cannot be read."""
    if source.streaming:
        return stream_splits(source)
    train = load_split(source, source.train_split)
    if source.eval_split is not None:
        held_out = load_split(source, source.eval_split)
    else:
        train, held_out = hold_out(train, source.eval_fraction)
    return Splits(first(train, source.max_train_rows), first(held_out, source.max_eval_rows))


def stream_splits(source: DatasetSource) -> Splits:
    """Score on `eval_split`, or on the first rows, which are then not trained on."""
    if source.max_eval_rows is None:
        raise DataError(
            f"{source.path}: a stream is scored on a fixed number of rows. "
            "Set --task.dataset.max-eval-rows."
        )
    split = source.eval_split or source.train_split
    rows = list(islice(Stream(replace(source, max_train_rows=None), split), source.max_eval_rows))
    skip = 0 if source.eval_split else len(rows)
    origin = f"{source.path} {source.train_split}"
    train = Examples(Stream(source, source.train_split, skip), origin)
    return Splits(train, Examples(rows, f"{source.path} {split}"))


def load_split(source: DatasetSource, split: str) -> Examples:
    """Read one split from the Hub or from its file."""
    if not is_local(source):
        dataset = hub_dataset(source, split, streaming=False)
        return Examples(
            dataset.to_list(), f"{source.path} {split}", label_names=class_labels(dataset)
        )
    return read_file(local_file(source, split))


def read_file(file: Path) -> Examples:
    """Read a local file. Raise DataError for one that has no rows."""
    numbered = list(read(file))
    if not numbered:
        raise DataError(f"{file}: no rows.")
    return Examples([row for _, row in numbered], str(file), [line for line, _ in numbered])


def hub_dataset(source: DatasetSource, split: str, *, streaming: bool) -> Any:
    """Load a split through datasets."""
    from datasets import load_dataset

    return load_dataset(
        source.path, source.name, split=split, revision=source.revision, streaming=streaming
    )


def check_vocabulary(examples: Examples, tokenizer: Any, num_embeddings: int) -> None:
    """Raise DataError for the first row with a token that the model has no embedding for."""
    if len(tokenizer) <= num_embeddings:
        return
    for index, row in enumerate(examples.rows):
        for text in (value for value in row.values() if isinstance(value, str)):
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
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


def read(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and rows of a JSONL, CSV, text or SQuAD JSON file."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            match file.suffix:
                case ".csv":
                    yield from read_csv(file, lines)
                case ".txt":
                    text = lines.read()
                    if text:
                        yield 1, {"text": text}
                case ".json":
                    yield from read_squad(file, lines.read())
                case _:
                    yield from read_jsonl(file, lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}.") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}.") from None


def read_jsonl(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield one object for each line; an empty line is passed over."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{number}: not JSON: {error.msg}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: {line.strip()[:40]!r} is not an object.")
        yield number, row


def read_csv(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows as text; a row of another length than the header is an error."""
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise DataError(f"{file}: empty.")
        for cells in reader:
            if len(cells) != len(header):
                raise DataError(
                    f"{file}:{reader.line_num}: {len(cells)} cells, but the header has "
                    f"{len(header)}."
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}.") from None


def read_squad(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the questions of a nested SQuAD file; the number is the question's place."""
    try:
        articles = json.loads(text)["data"]
        questions = [
            (paragraph["context"], question)
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        for number, (context, question) in enumerate(questions, start=1):
            answers = question.get("answers", [])
            yield (
                number,
                {
                    "id": question["id"],
                    "question": question["question"],
                    "context": context,
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                },
            )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not SQuAD JSON: {error!r}.") from None


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """Split off the last rows; a single document is cut at a character."""
    rows = list(examples.rows)
    if len(rows) == 1 and isinstance(rows[0].get("text"), str):
        text = rows[0]["text"]
        cut = round(len(text) * (1 - fraction))
        head, tail = text[:cut], text[cut:]
        return replace(examples, rows=[rows[0] | {"text": head}]), replace(
            examples, rows=[rows[0] | {"text": tail}]
        )
    if len(rows) < 2:
        raise DataError(f"{examples.origin}: {len(rows)} rows cannot be split.")
    cut = len(rows) - max(1, round(len(rows) * fraction))
    lines = examples.lines
    return (
        replace(examples, rows=rows[:cut], lines=lines and lines[:cut]),
        replace(examples, rows=rows[cut:], lines=lines and lines[cut:]),
    )


def first(examples: Examples, count: int | None) -> Examples:
    """Keep the first rows."""
    return examples if count is None else replace(examples, rows=list(examples.rows)[:count])
