"""samples.jsonl: what the model says of a few validation rows before and after training.

It also has the texts of the worst and best rows of the score, which predictions.jsonl only names.
The file stays on this machine. It belongs to the run that its lines name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import EvalPrediction, PreTrainedTokenizerBase

from pipelines.data.rows import Examples
from pipelines.html_report.ranking import worst_and_best
from pipelines.inference.predict import logits_of_rows
from pipelines.models.generation import continue_prompts
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.run_files import SAMPLES
from pipelines.results.disk import explain_disk_errors
from pipelines.tasks.base import Features, RowResult, Task
from pipelines.tasks.generation import Generation
from pipelines.training.trainer import RecipeTrainer

NUM_PROMPTS, NUM_ROWS = 3, 5
GREEDY = Generation(max_new_tokens=40)


@dataclass(frozen=True)
class Sampler:
    """Asks a model about the same validation rows before and after training.

    It draws nothing and leaves the model as it was, so that the training does not notice. Only
    rank 0 computes.
    """

    recipe: Recipe
    trainer: RecipeTrainer
    tokenizer: PreTrainedTokenizerBase
    held_out: Examples
    labels: tuple[str, ...]

    def write_before(self) -> None:
        """Replace the file by the samples before training."""
        with self.trainer.whole_model() as model:
            if PartialState().is_main_process:
                self.write(self.samples("before", model))

    def write_after(self, reported: str, results: Sequence[RowResult]) -> None:
        """Add the samples after training, and the texts of the worst and best rows.

        `results` are those of the split `reported`. Lines of another run, and of an end that was
        interrupted, are dropped.
        """
        with self.trainer.whole_model() as model:
            if PartialState().is_main_process:
                before = [line for line in self.read() if line["when"] == "before"]
                ranked = self.ranked_rows(reported, results)
                self.write([*before, *self.samples("after", model), *ranked])

    def read(self) -> list[dict[str, Any]]:
        """Return the lines of this run."""
        file = self.recipe.folder / SAMPLES
        if not file.is_file():
            return []
        lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["run"] == self.trainer.identity["run"]]

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write the file. Raise CheckpointError for an error of the disk."""
        folder, run = self.recipe.folder, {"run": self.trainer.identity["run"]}
        text = "".join(json.dumps(run | line, ensure_ascii=False) + "\n" for line in lines)
        advice = "Make room and run the same command again."
        with explain_disk_errors(folder, num_bytes=len(text), advice=advice):
            unfinished = folder / f"{SAMPLES}.tmp"
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(folder / SAMPLES)

    def samples(self, when: str, model: Any) -> list[dict[str, Any]]:
        """Return what a model says, of each row with its location, input and reference."""
        task, progress = self.trainer.splits["eval"].task, self.trainer.progress
        with self.trainer.compute_loss_context_manager(), progress.phase("samples", "sampling"):
            rows = self.predicted(task, model) if task.head else self.continued(task, model)
        return [{"when": when, **row} for row in rows]

    def continued(self, task: Task, model: Any) -> list[dict[str, Any]]:
        """Return greedy continuations of a few prompts."""
        features = self.trainer.splits["eval"].features
        prompts = task.sample_prompts(features, self.tokenizer, NUM_PROMPTS)
        ids = [prompt.input_ids for prompt in prompts]
        written = continue_prompts(model, self.tokenizer, ids, GREEDY)
        return [
            {
                "row": prompt.row,
                "input": self.text(prompt.input_ids),
                "output": continuation.text,
                "detail": "",
                "reference": prompt.reference,
            }
            for prompt, continuation in zip(prompts, written, strict=True)
        ]

    def predicted(self, task: Task, model: Any) -> list[dict[str, Any]]:
        """Return predictions for the first rows."""
        first = replace(self.held_out, rows=list(islice(self.held_out.rows, NUM_ROWS)))
        features = task.features(first, self.tokenizer, self.labels, training=False)
        collate, was_training = task.collate(int(self.tokenizer.pad_token_id or 0)), model.training
        model.eval()
        with torch.no_grad():  # tensors of inference_mode that a layer keeps would break training
            logits = logits_of_rows(task, model, features.dataset, collate)
        model.train(was_training)
        targets = np.asarray([row["labels"] for row in features.dataset])
        untyped: Any = logits
        results = task.row_results(EvalPrediction(untyped, targets), features, self.labels)
        return [self.line(task, features, index, result) for index, result in enumerate(results)]

    def ranked_rows(self, reported: str, results: Sequence[RowResult]) -> list[dict[str, Any]]:
        """Return the worst and the best rows with their texts."""
        split = self.trainer.splits[reported]
        return [
            {
                "when": "at the end",
                **self.line(split.task, split.features, each.index, results[each.index]),
            }
            for rows in worst_and_best(split.task, results)
            for each in rows
        ]

    def line(self, task: Task, features: Features, index: int, result: RowResult) -> dict[str, Any]:
        """Return the result of a row with its text."""
        shown = task.shown(result)
        return {
            "row": result.row,
            "input": self.text(task.tokens_read(features, index)),
            "output": shown.prediction,
            "detail": shown.detail,
            "reference": shown.reference,
        }

    def text(self, ids: Sequence[int]) -> str:
        """Return tokens as a text, with a line for each part that EOS separates."""
        parts = [list(part) for is_eos, part in groupby(map(int, ids), self.is_eos) if not is_eos]
        return "\n".join(str(self.tokenizer.decode(part)) for part in parts)

    def is_eos(self, token: int) -> bool:
        """Tell whether a token separates or ends texts."""
        return token == int(self.tokenizer.eos_token_id)
