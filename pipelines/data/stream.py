"""Rows that are read during training, and not held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.hub_datasets import hub_dataset
from pipelines.data.local_files import is_local, split_files
from pipelines.data.readers import read_files
from pipelines.data.rejected_file import append_rejected, read_lines
from pipelines.data.row_reader import RowReader
from pipelines.data.rows import Numbered
from pipelines.data.source import DatasetSource
from pipelines.data.validate import HINT, drop_unusable, raise_rejected, to_examples


@dataclass(frozen=True)
class Stream:
    """Rows that are read again at each iteration, without the first `skip`.

    A row that `task` cannot use raises DataError, or is appended to the file `rejected`.
    """

    source: DatasetSource
    split: str
    skip: int = 0
    task: RowReader | None = None
    rejected: Path | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        origin, records = self.records()
        local, known = is_local(self.source), read_lines(self.rejected)
        for record in records:
            examples = to_examples([record], origin, local)
            if self.task is not None:
                examples = drop_unusable(self.task, examples, None)
            if examples.rejected and self.source.on_bad_row == "stop":
                raise_rejected(examples.rejected, HINT)
            if examples.rejected and self.rejected is not None:
                append_rejected(self.rejected, examples.rejected, known)
            yield from examples.rows

    def fingerprint(self) -> str | None:
        """Return a hash of local files' sizes and starts; None for the Hub, by its commit."""
        if not is_local(self.source):
            return None
        digest = hashlib.sha256()
        for file in split_files(self.source, self.split):
            with file.open("rb") as content:
                digest.update(str(file.stat().st_size).encode() + content.read(2**20))
        return digest.hexdigest()

    def records(self) -> tuple[str, Iterator[Numbered]]:
        """Return the rows' origin, and the rows with their numbers."""
        rows: Iterable[Numbered]
        if is_local(self.source):
            files = split_files(self.source, self.split)
            origin, rows = origin_of(files), read_files(files)
        else:
            origin = f"{self.source.path} {self.split}"
            rows = enumerate(hub_dataset(self.source, self.split, streaming=True))
        stop = self.source.max_train_rows
        return origin, islice(rows, self.skip, None if stop is None else self.skip + stop)


def origin_of(files: Sequence[Path]) -> str:
    """Return the file of a split, or the folder of its files, as a text."""
    return str(files[0] if len(files) == 1 else files[0].parent)
