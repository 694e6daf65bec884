"""Predict labels, numbers or answers for rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pipelines.data.padding import Collator
from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult
from pipelines.inference.loading import load_to_infer
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
    if not examples.rows:
        check_predicts(loaded)
        return []
    (predictions,) = predict_encoded(loaded, [encode(loaded, examples)], batch_size=batch_size)
    return predictions


def check_predicts(loaded: LoadedResult) -> None:
    """Raise DataError for a language model."""
    if loaded.recipe.task.head is None:
        raise DataError(
            f"{loaded.recipe.name}: a language model has no labels to predict. Use "
            "`gpt2-recipes generate`."
        )


def encode(loaded: LoadedResult, examples: Examples) -> Features:
    """Return rows as the model reads them. Raise DataError for a row that cannot be used."""
    check_predicts(loaded)
    return loaded.recipe.task.features(
        examples, loaded.tokenizer, loaded.labels, training=False, labelled=False
    )


def predict_encoded(
    loaded: LoadedResult, parts: Sequence[Features], *, batch_size: int = 32
) -> list[list[dict[str, Any]]]:
    """Return the predictions for each part, whose rows share batches with those of the others."""
    task = loaded.recipe.task
    collate = task.collate(int(loaded.tokenizer.pad_token_id or 0))
    rows = [row for part in parts for row in part.dataset]
    with torch.inference_mode():
        logits = iter(logits_of_rows(task, loaded.model, rows, collate, batch_size=batch_size))
    return [
        task.predictions(list(islice(logits, len(part.dataset))), part, loaded.labels)
        for part in parts
    ]


def logits_of_rows(
    task: Task,
    model: Any,
    encoded: Sequence[dict[str, Any]],
    collate: Collator,
    *,
    batch_size: int = 32,
) -> list[Any]:
    """Return the logits of each encoded row, as `Task.predictions` takes them, in order."""
    with reading_rows(without_adapter_class(model)):
        return logits_by_batches(task, model, encoded, collate, batch_size=batch_size)


def logits_by_batches(
    task: Task,
    model: Any,
    encoded: Sequence[dict[str, Any]],
    collate: Collator,
    *,
    batch_size: int = 32,
) -> list[Any]:
    """Do what `logits_of_rows` does with anything that is called as a model, and has a `device`."""
    longest_first = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]["input_ids"]))
    logits: dict[int, Any] = {}  # by row
    for start in range(0, len(longest_first), batch_size):
        rows = longest_first[start : start + batch_size]
        batch = collate([encoded[row] for row in rows])
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
    loaded = load_to_infer(repo, revision, base=base, precision=precision)
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
    are predicted before they are written. Says at the end how many rows were cut.
    """
    counts = Counter[str]()

    def compute(examples: Examples) -> list[dict[str, Any]]:
        encoded = encode(loaded, examples)
        counts.update(encoded.report)
        (predictions,) = predict_encoded(loaded, [encoded], batch_size=batch_size)
        return predictions

    sizes = {"chunk_size": 64 * batch_size, "chunk_characters": 8192 * batch_size}
    map_file(file, compute, out, settings, keep=keep, **sizes)
    show_cut(counts)


def show_cut(counts: Mapping[str, int]) -> None:
    """Print to standard error how many rows were cut; `counts` are of encoding, by name."""
    for name in counts:
        kind = name.removesuffix("_cut")
        if kind != name and counts[name]:
            line = f"{counts[name]:,} of {counts[kind]:,} {kind} are longer than the model reads"
            shown = Console(stderr=True, soft_wrap=True, highlight=False)
            shown.print(f"  {line}, and were cut as in training", style="yellow", markup=False)
