"""Encode rows once: every process and every later run maps the result into memory."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipelines.data.encoded_rows import EncodedRows, EncodedSplit, FileSink
from pipelines.data.rows import Examples
from pipelines.data.rows_on_disk import RowsOnDisk
from pipelines.models.tokenizer_checks import max_token_id
from pipelines.preparing.store import Store
from pipelines.preparing.tokenizer import tokenizer_key
from pipelines.recipe.schema import to_json_value
from pipelines.tasks.base import Features, Task

REST, LENGTHS = "features.json", "lengths.int64"
ADVANCE_ROWS = 1000  # rows after which a progress bar moves


def prepared_features(
    task: Task,
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    *,
    training: bool,
    store: Store,
) -> Features:
    """Encode rows as `task.features` does; those on disk only once."""
    rows = examples.rows
    if not isinstance(rows, RowsOnDisk):
        return task.features(examples, tokenizer, labels, training=training)
    folder = store.folder(
        "tokens",
        features_key(task, examples, tokenizer, labels, training=training),
        lambda folder: write_features(
            folder, task, examples, tokenizer, labels, training=training, store=store
        ),
        num_bytes=rows.num_bytes,
    )
    return open_features(folder, task, examples)


def features_key(
    task: Task,
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    *,
    training: bool,
) -> dict[str, Any]:
    """Return all that encoded rows follow from."""
    options = to_json_value(task)
    del options["dataset"]
    return {
        "rows": examples.fingerprint(),
        "tokenizer": tokenizer_key(tokenizer),
        "task": {type(task).__name__: options},
        "labels": labels,
        "training": training,
    }


def write_features(
    folder: Path,
    task: Task,
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    *,
    training: bool,
    store: Store,
) -> None:
    """Write encoded rows, and what else their features are made of."""
    use = "training" if training else "evaluation"
    text = f"tokenising {examples.num_rows:,} {use} rows"
    with store.progress.phase("encoding", text, total=examples.num_rows):
        assert isinstance(examples.rows, RowsOnDisk)
        watched = replace(examples, rows=examples.rows.watched(store.progress.advance))
        encoded = task.encode(
            watched,
            tokenizer,
            labels,
            training=training,
            sinks=lambda name: FileSink(folder / f"{name}.arrow", max_token_id(tokenizer)),
        )
    for file in folder.glob("*.arrow"):
        if file.stem not in encoded.tables:
            file.unlink()
    content = {"tables": [*encoded.tables], "report": encoded.report, "context": encoded.context}
    (folder / REST).write_text(json.dumps(content))
    (folder / LENGTHS).write_bytes(array("q", encoded.lengths).tobytes())


def open_features(folder: Path, task: Task, examples: Examples) -> Features:
    """Return the features of rows that `write_features` has written."""
    rest = json.loads((folder / REST).read_text())
    tables = {name: EncodedRows(folder / f"{name}.arrow") for name in rest["tables"]}
    lengths = array("q", (folder / LENGTHS).read_bytes())
    encoded = EncodedSplit(tables, rest["report"], lengths, rest["context"])
    return task.restored(examples, encoded)
