"""Rows that are read while training."""

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
from pipelines.data.row_reader import RowReader
from pipelines.data.rows import Numbered
from pipelines.data.source import DatasetSource
from pipelines.data.validate import (
    HINT,
    append_rejected,
    drop_unusable,
    lines_of,
    raise_rejected,
    to_examples,
)


@dataclass(frozen=True)
class Stream:
    """Rows that are read each time they are iterated; the first `skip` are left out.

    Those that `task` cannot use are refused when they are met, or appended to `rejected`.
    """

    source: DatasetSource
    split: str
    skip: int = 0
    task: RowReader | None = None
    rejected: Path | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        origin, records = self.records()
        local, known = is_local(self.source), lines_of(self.rejected)
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


def origin_of(files: Sequence[Path]) -> str:
    """Name the file of a split, or the folder of its files."""
    return str(files[0] if len(files) == 1 else files[0].parent)
