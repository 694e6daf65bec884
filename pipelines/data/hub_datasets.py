"""Load datasets of the Hub."""

from __future__ import annotations

from typing import Any

from pipelines.data.source import DatasetSource
from pipelines.errors import DataError


def hub_dataset(source: DatasetSource, split: str, *, streaming: bool) -> Any:
    """Load a split with `datasets`, and retry if the Hub fails."""
    from datasets import load_dataset

    from pipelines.hub_client.client import Hub
    from pipelines.hub_client.transport import HubError

    options: dict[str, Any] = {"revision": source.revision, "streaming": streaming}
    try:
        return Hub().fetch(
            lambda: load_dataset(source.path, source.name, split=split, **options), watched=False
        )
    except HubError as error:
        raise DataError(f"{source.path}: {error}") from error


def class_labels(features: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of each column that is a ClassLabel or a list of them."""
    if features is None:
        return {}
    from datasets import ClassLabel

    types = {name: getattr(each, "feature", each) for name, each in features.items()}
    return {name: tuple(t.names) for name, t in types.items() if isinstance(t, ClassLabel)}


def first_rows_of_hub(
    source: DatasetSource, count: int = 1000
) -> tuple[list[str], list[dict[str, Any]], dict[str, tuple[str, ...]]]:
    """Return the names of a dataset's splits, first rows, and the names of its class labels.

    The rows are those of `train`, or of the first split. Raise DataError if the Hub fails, and for
    a configuration that the dataset does not have.
    """
    from datasets import get_dataset_split_names

    from pipelines.hub_client.client import Hub
    from pipelines.hub_client.transport import HubError

    try:
        Hub().ask(lambda api: api.dataset_info(source.path, revision=source.revision))
        splits = list(get_dataset_split_names(source.path, source.name, revision=source.revision))
    except (HubError, ConnectionError, ValueError) as error:
        raise DataError(f"{source.path}: {error}") from error
    split = "train" if "train" in splits else splits[0]
    dataset = hub_dataset(source, split, streaming=True)
    return splits, list(dataset.take(count)), class_labels(dataset.features)
