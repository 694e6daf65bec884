"""Labels, numbers or answers for rows that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pipelines.data import read_file
from pipelines.hub import Loaded, load_adapter
from pipelines.report import quiet
from pipelines.tasks.base import DataError, Examples


def predict(loaded: Loaded, examples: Examples, *, batch_size: int = 32) -> list[dict[str, Any]]:
    """Return a prediction for each row, in order. Raise DataError for a language model."""
    task = loaded.recipe.task
    if task.head is None:
        raise DataError(f"{loaded.recipe.name}: a language model has no labels to predict.")
    given = task.features(examples, loaded.tokenizer, loaded.labels, training=False, labelled=False)
    collate = task.collate(int(loaded.tokenizer.pad_token_id or 0))
    logits: list[Any] = []
    for start in range(0, len(given.dataset), batch_size):
        batch = collate(given.dataset[start : start + batch_size])
        inputs = {name: value.to(loaded.model.device) for name, value in batch.items()}
        with torch.inference_mode():
            outputs = loaded.model(**inputs)
        found = tuple(value for name, value in outputs.items() if name.endswith("logits"))
        reduced = task.reduce_logits(found if len(found) > 1 else found[0], None)
        logits += list(reduced.float().cpu().numpy())
    return task.predictions(logits, given, loaded.labels)


def predict_file(folder: str | Path, file: str | Path) -> None:
    """Print one line of JSON for each row of a JSONL or CSV file, with its `id` if it has one."""
    quiet()
    examples = read_file(Path(file))
    for row, prediction in zip(examples.rows, predict(load_adapter(folder), examples), strict=True):
        known = {"id": row["id"]} if "id" in row else {}
        print(json.dumps(known | prediction, ensure_ascii=False))
