"""Causal language modelling: pretraining from scratch and continued training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from pipelines.data.padding import pad_inputs, pad_right
from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.base import Features, Objective, Score, Task, text_of, token_ids

CHUNK = 1000  # documents that are encoded, and in a stream fitted into blocks, together


@dataclass(frozen=True, kw_only=True)
class CausalLM(Task):
    """Predict the next token of packed documents."""

    text_column: str = "text"
    """Column that holds a document."""
    block_size: Annotated[int, Ge(2)] = 1024
    """Tokens of a training row."""
    packing: Literal["wrapped", "bfd_split"] = "wrapped"
    """How documents fill a row, by trl's names: one after the other, cut where it ends, and each
    sees those before it; or whole, by best fit, only the longest are cut, and none sees another."""

    does: ClassVar[str] = "predicts the next token"
    limits: ClassVar[str] = (
        "It repeats what its training text says, also where that is wrong or offensive."
    )
    pipeline_tag: ClassVar[str] = "text-generation"

    objective: ClassVar[Objective] = "language_model"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    length_field: ClassVar[str] = "block_size"
    grouped_by: ClassVar[str] = "document"

    def example(self, examples, index, row, labels, *, labelled=True) -> str:
        return text_of(examples, index, row, self.text_column)

    @property
    def isolates_rows(self) -> bool:
        return self.packing == "bfd_split"

    @property
    def document_column(self):
        return self.text_column

    def inputs(self, row):
        return row[self.text_column]

    def texts(self, examples: Examples) -> Iterator[str]:
        """Yield the documents, checked."""
        for index, row in enumerate(examples.rows):
            yield self.example(examples, index, row, None)

    def features(self, examples, tokenizer, labels, *, training, labelled=True) -> Features:
        """Pack documents into blocks; each document comes after EOS and ends in EOS.

        What is cut goes on in another block, which repeats the last token before the cut, so that
        every token is predicted exactly once. Of wrapped documents what does not fill the last
        block is counted and left out in training, and scored as a shorter row in evaluation. Where
        none may see another, each is a row of its own in evaluation.
        """
        if not isinstance(examples.rows, list):
            from datasets import IterableDataset

            stream = IterableDataset.from_generator(
                pack, gen_kwargs={"task": self, "examples": examples, "tokenizer": tokenizer}
            )
            return Features(stream, {}, num_rows=-1)
        import numpy as np

        texts = list(self.texts(examples))
        eos = tokenizer.eos_token_id
        documents = [
            np.asarray([*ids, eos])
            for start in range(0, len(texts), CHUNK)
            for ids in token_ids(tokenizer, texts[start : start + CHUNK])
        ]
        report = {"documents": len(texts), "tokens": 1 + sum(map(len, documents))}
        if self.packing == "wrapped":
            rows = [{"input_ids": block} for block in self.cut(np.concatenate([[eos], *documents]))]
            report |= {"blocks": len(rows), "tokens_left_out": 0}
            if training and rows and len(rows[-1]["input_ids"]) < self.block_size:
                report["tokens_left_out"] = len(rows.pop()["input_ids"]) - 1
                report["blocks"] = len(rows)
        else:
            rows = self.best_fit(documents, eos, together=training)
            num_tokens = sum(len(row["input_ids"]) for row in rows)
            report |= {"blocks": len(rows)}
            if training:
                report["places_empty"] = len(rows) * self.block_size - num_tokens
        if not rows:
            raise DataError(
                f"{examples.origin}: {report['tokens']} tokens fill no block of "
                f"{self.block_size}. Lower --task.block-size or give more text."
            )
        num_bytes = sum(len(text.encode()) for text in texts)
        return Features(
            rows, report, num_rows=len(rows), context=num_bytes, where="block {}".format
        )

    def cut(self, tokens: Any) -> list[Any]:
        """Cut tokens into blocks, each with the last token of the one before, and a shorter one."""
        return [
            tokens[start : start + self.block_size]
            for start in range(0, len(tokens) - 1, self.block_size - 1)
        ]

    def best_fit(self, documents: list[Any], eos: int, *, together: bool) -> list[dict[str, Any]]:
        """Return rows of a document, or a piece of a long one; `together` of as many as fit."""
        import numpy as np

        from pipelines.data.bin_packing import best_fit

        pieces = [piece for ids in documents for piece in self.cut(np.concatenate([[eos], ids]))]
        if not together:
            return [{"input_ids": piece} for piece in pieces]
        rows = []
        for numbers in best_fit([len(piece) for piece in pieces], self.block_size):
            kept = [pieces[number] for number in numbers]
            lengths = [len(piece) for piece in kept]
            rows.append({"input_ids": np.concatenate(kept), "seq_lengths": lengths})
        return rows

    def collate(self, pad_token_id, multiple=1):
        def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
            inputs = pad_inputs(rows, pad_token_id, multiple)
            mask = inputs["attention_mask"]
            inputs["labels"] = inputs["input_ids"].masked_fill(mask == 0, -100)
            if "seq_lengths" in rows[0]:
                places = [list(chain(*map(range, row["seq_lengths"]))) for row in rows]
                inputs["position_ids"] = pad_right(places, 0, multiple)
                # A document's first token does not follow from what stands before it
                inputs["labels"].masked_fill_(inputs["position_ids"] == 0, -100)
            if mask.all() or "position_ids" in inputs:  # which keep documents apart without a mask
                del inputs["attention_mask"]
            return inputs

        return batch

    def example_row(self):
        return {self.text_column: "Good morning"}

    def example_lines(self):
        return [
            'inputs = tokenizer(tokenizer.eos_token + "Good morning", return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=20, do_sample=False)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]

    def reduce_logits(self, losses, labels):
        """Return (batch, 2): summed negative log-likelihood and number of predicted tokens."""
        import torch

        return torch.stack([losses.sum(1), (labels[:, 1:] != -100).sum(1).float()], dim=1)

    def score(self, prediction, held_out, labels) -> Score:
        import numpy as np

        rows = np.asarray(prediction.predictions, dtype=np.float64)
        nll, count = rows.sum(0)
        low, high = bootstrap(rows, lambda means: np.exp(means[:, 0] / means[:, 1]))
        metrics = {
            "loss": nll / count,
            "perplexity": math.exp(nll / count),
            "bits_per_byte": nll / math.log(2) / held_out.context,
            "predicted_tokens": int(count),
        }
        return Score(metrics, "perplexity", (low, high), num_rows=len(rows))

    def row(self, text):
        """Return a row of a text to continue."""
        return {self.text_column: text}

    def prompts(self, examples, tokenizer):
        """Return texts to continue; in training, documents begin after EOS."""
        texts = list(self.texts(examples))
        for index, text in enumerate(texts):
            if not text.strip():
                raise DataError(
                    f"{examples.where(index)}: the text is empty. Give its beginning, which the "
                    "model continues."
                )
        return [[tokenizer.eos_token_id, *ids] for ids in token_ids(tokenizer, texts)]


def pack(task: CausalLM, examples: Examples, tokenizer: Any) -> Iterator[dict[str, list[int]]]:
    """Yield full blocks while reading, or blocks of the documents of a chunk."""
    eos = tokenizer.eos_token_id
    tokens = [eos]
    texts = task.texts(examples)
    while chunk := list(islice(texts, 1 if task.packing == "wrapped" else CHUNK)):
        documents = [[*ids, eos] for ids in token_ids(tokenizer, chunk)]
        if task.packing == "bfd_split":
            yield from task.best_fit(documents, eos, together=True)
            continue
        tokens += documents[0]
        while len(tokens) >= task.block_size:
            yield {"input_ids": tokens[: task.block_size]}
            tokens = tokens[task.block_size - 1 :]
