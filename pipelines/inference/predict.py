"""Predict labels, numbers or answers for rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.data.padding import Collator
from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult, load_result
from pipelines.inference.resumable_jsonl import map_file
from pipelines.models.causal_attention import reading_rows
from pipelines.models.generation import without_adapter_class
from pipelines.process import quiet_libraries
from pipelines.recipe.values import Precision
from pipelines.tasks.base import Features, Task


@quiet_libraries()
def predict_examples(
    loaded: LoadedResult, examples: Examples, *, batch_size: int = 32
) -> list[dict[str, Any]]:
    """Return a prediction for each row, in order. Raise DataError for a language model."""
    task = loaded.recipe.task
    if task.head is None:
        raise DataError(
            f"{loaded.recipe.name}: a language model has no labels to predict. Use "
            "`gpt2-recipes generate`."
        )
    if not examples.rows:
        return []
    given = task.features(examples, loaded.tokenizer, loaded.labels, training=False, labelled=False)
    collate = task.collate(int(loaded.tokenizer.pad_token_id or 0))
    with torch.inference_mode():
        logits = logits_of_rows(task, loaded.model, given, collate, batch_size=batch_size)
    return task.predictions(logits, given, loaded.labels)


def logits_of_rows(
    task: Task, model: Any, given: Features, collate: Collator, *, batch_size: int = 32
) -> list[Any]:
    """Return the logits of each encoded row, as `Task.predictions` takes them, in order."""
    longest_first = sorted(
        range(len(given.dataset)), key=lambda row: -len(given.dataset[row]["input_ids"])
    )
    logits: dict[int, Any] = {}  # by row
    with reading_rows(without_adapter_class(model)):
        for start in range(0, len(longest_first), batch_size):
            rows = longest_first[start : start + batch_size]
            batch = collate([given.dataset[row] for row in rows])
            inputs = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
            outputs = model(**inputs)
            heads = tuple(value for name, value in outputs.items() if name.endswith("logits"))
            reduced = task.reduce_logits(heads if len(heads) > 1 else heads[0], None)
            logits |= zip(rows, reduced.float().cpu().numpy(), strict=True)
    return [logits[row] for row in sorted(logits)]


@quiet_libraries()
def predict_file(
    repo: str,
    file: Path,
    *,
    out: Path | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 32,
    keep: Sequence[str] | None = None,
) -> None:
    """Predict for each row of a file; see `resumable_jsonl.map_file` for `out` and errors."""
    loaded = load_result(repo, revision, base=base, precision=precision)
    settings = {
        "command": "predict",
        "result": loaded.sha256,
        "base": base,
        "precision": precision,
    }
    predict_rows(loaded, file, out, settings, batch_size=batch_size, keep=keep)


def predict_rows(
    loaded: LoadedResult,
    file: Path,
    out: Path | None,
    settings: dict[str, Any],
    *,
    batch_size: int = 32,
    keep: Sequence[str] | None = None,
) -> None:
    """Predict for each row of a file with a loaded result.

    Sorts short rows across 64 batches to reduce padding. Long rows take longer, so fewer of them
    are predicted before they are written.
    """

    def compute(examples: Examples) -> list[dict[str, Any]]:
        return predict_examples(loaded, examples, batch_size=batch_size)

    sizes = {"chunk_size": 64 * batch_size, "chunk_characters": 8192 * batch_size}
    map_file(file, compute, out, settings, keep=keep, **sizes)
