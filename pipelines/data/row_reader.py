"""The part of a task's interface that reading and splitting rows needs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource


class RowReader(Protocol):
    """The part of a `tasks.base.Task` that deals with rows; see there for each method."""

    grouped_by: ClassVar[str]

    @property
    def dataset(self) -> DatasetSource: ...
    @property
    def stratified_by(self) -> str | None: ...
    @property
    def document_column(self) -> str | None: ...
    def columns(self) -> Iterator[tuple[str, str]]: ...
    def inputs(self, row: dict[str, Any]) -> Hashable: ...
    def group(self, row: dict[str, Any]) -> Hashable: ...
    def labels(self, train: Examples) -> tuple[str, ...]: ...
    def row_labels(self, examples: Examples, index: int, row: dict[str, Any]) -> Sequence[str]: ...
    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> Any: ...
