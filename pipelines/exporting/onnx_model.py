"""Run an ONNX file in onnxruntime, and compare it with the model that it was written from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from pipelines.data.rows import Examples
from pipelines.errors import ExportError
from pipelines.hub.load import LoadedResult
from pipelines.inference.merge import logits_of
from pipelines.inference.predict import logits_by_batches
from pipelines.models.probes import num_positions
from pipelines.tasks.base import Score

LARGEST_DIFFERENCE = 1e-4
"""Of a logit, as a fraction of the largest one if that is above 1."""
CACHE = "past_key_values."
LONGEST = 1024
"""Tokens of the longest row that is compared, of models that read more."""


class OnnxModel:
    """An ONNX file, called as the model that it was written from."""

    device = torch.device("cpu")

    def __init__(self, file: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [each.name for each in self.session.get_outputs()]
        inputs = self.session.get_inputs()
        self.cache = {each.name: each.shape for each in inputs if each.name.startswith(CACHE)}

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past: Sequence[torch.Tensor] = (),
    ) -> dict[str, torch.Tensor]:
        """Return all outputs by name. Without a `past` the cache is empty."""
        given = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        for index, (name, (_, heads, _, width)) in enumerate(self.cache.items()):
            empty = np.zeros((len(input_ids), heads, 0, width), dtype=np.float32)
            given[name] = past[index].numpy() if past else empty
        found = self.session.run(self.outputs, given)
        return dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))

    def continued(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, split: int
    ) -> torch.Tensor:
        """Return the logits of rows that are read in two parts, the second one after a cache."""
        first = self(input_ids[:, :split], attention_mask[:, :split])
        past = [first[name] for name in self.outputs if name.startswith("present.")]
        second = self(input_ids[:, split:], attention_mask, past)
        logits = torch.cat([first["logits"], second["logits"]], dim=1)
        return logits[attention_mask.bool()].flatten()


@dataclass(frozen=True)
class Difference:
    """How far logits are from the original's; `of` is the largest of these."""

    largest: float
    of: float

    @property
    def relative(self) -> float:
        """The difference as a fraction of the largest logit, if that is above 1."""
        return self.largest / max(1.0, self.of)


Reads = list[tuple[dict[str, torch.Tensor], torch.Tensor]]
"""Batches, and the logits that the original gives for each."""


def reads_of(model: Any, batch: dict[str, torch.Tensor]) -> Reads:
    """Return what a file is compared by: padded rows, one row, one token, and the longest row."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, min(LONGEST, num_positions(model.config)))
    longest = torch.randint(model.config.vocab_size, shape, generator=generator)
    ids = batch["input_ids"]
    mask = torch.ones_like(ids)
    mask[1:, max(1, ids.shape[1] // 2) :] = 0
    mask = batch.get("attention_mask", mask)
    length = int(mask[0].sum())
    rows = [(ids, mask), (ids[:1, :length], mask[:1, :length]), (ids[:1, :1], mask[:1, :1])]
    rows.append((longest, torch.ones_like(longest)))
    batches = [{"input_ids": ids, "attention_mask": mask} for ids, mask in rows]
    return [(each, logits_of(model, each)) for each in batches]


def compare(file: OnnxModel, reads: Reads) -> Difference:
    """Return the largest difference of a logit from the original's, with a cache and without.

    Raise ExportError for a logit that is not finite.
    """
    apart = of = 0.0
    for batch, expected in reads:
        of = max(of, expected.abs().max().item())
        for found in logits_by(file, batch):
            difference = (found - expected).abs().max().item()
            if not np.isfinite(difference):
                raise ExportError("the ONNX file gives logits that are not finite.")
            apart = max(apart, difference)
    return Difference(apart, of)


def logits_by(file: OnnxModel, batch: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the logits of a batch: read at once and, by a language model, in two parts."""
    yield logits_of(file, batch)
    length = batch["input_ids"].shape[1]
    if file.cache and length > 1:
        for split in {length // 2, length - 1}:
            yield file.continued(batch["input_ids"], batch["attention_mask"], split)


def check_equal(difference: Difference) -> None:
    """Raise ExportError for a file in float32 that does not give the original's logits."""
    if difference.relative > LARGEST_DIFFERENCE:
        raise ExportError(
            f"the ONNX file gives other logits than the model, by {difference.largest:.3g} of "
            f"{difference.of:.3g}. It was deleted. This model cannot be exported to ONNX."
        )


def score_head(loaded: LoadedResult, file: OnnxModel, rows: Examples) -> Score:
    """Return the score of rows by the file, as the run computed its own."""
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    held_out = task.features(rows, tokenizer, loaded.labels, training=False)
    collate = task.collate(int(tokenizer.pad_token_id or 0))
    logits: Any = logits_by_batches(task, file, held_out.dataset, collate)
    if len({each.shape for each in logits}) == 1:
        logits = np.stack(logits)
    truth = np.asarray([row["labels"] for row in held_out.dataset if "labels" in row])
    return task.score(EvalPrediction(logits, truth), held_out, loaded.labels)
