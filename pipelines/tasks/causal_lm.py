"""Causal language modelling: pretraining from scratch and continued training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from pipelines.tasks.base import (
    DataError,
    Examples,
    Features,
    Score,
    Task,
    bootstrap,
    pad_inputs,
    text_of,
    token_ids,
)


@dataclass(frozen=True, kw_only=True)
class CausalLM(Task):
    """Predict the next token of packed documents."""

    text_column: str = "text"
    """Column that holds a document."""
    block_size: Annotated[int, Ge(2)] = 1024
    """Tokens of a training row."""

    does: ClassVar[str] = "predicts the next token"
    limits: ClassVar[str] = (
        "It repeats what its training text says, also where that is wrong or offensive."
    )
    pipeline_tag: ClassVar[str] = "text-generation"

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    length_field: ClassVar[str] = "block_size"

    def example(self, examples, index, row, labels, *, labelled=True) -> str:
        return text_of(examples, index, row, self.text_column)

    def texts(self, examples: Examples) -> Iterator[str]:
        """Yield the documents, checked."""
        for index, row in enumerate(examples.rows):
            yield self.example(examples, index, row, None)

    def features(self, examples, tokenizer, labels, *, training, labelled=True) -> Features:
        """Join documents with EOS and pack them into blocks.

        Each block repeats the last token of the block before, so that every token is predicted
        exactly once. In training, what does not fill the last block is counted and left out; in
        evaluation it is scored as a shorter row.
        """
        if not isinstance(examples.rows, list):
            from datasets import IterableDataset

            stream = IterableDataset.from_generator(
                pack, gen_kwargs={"task": self, "examples": examples, "tokenizer": tokenizer}
            )
            return Features(stream, {}, num_rows=-1)
        import numpy as np

        texts = list(self.texts(examples))
        stream_ids = [tokenizer.eos_token_id]
        for start in range(0, len(texts), 1000):
            for ids in token_ids(tokenizer, texts[start : start + 1000]):
                stream_ids += [*ids, tokenizer.eos_token_id]
        tokens = np.asarray(stream_ids, dtype=np.int64)
        step = self.block_size - 1
        blocks = [tokens[i : i + self.block_size] for i in range(0, len(tokens) - 1, step)]
        left_out = 0
        if training and blocks and len(blocks[-1]) < self.block_size:
            left_out = len(blocks.pop()) - 1
        if not blocks:
            raise DataError(
                f"{examples.origin}: {len(tokens)} tokens fill no block of {self.block_size}. "
                "Lower --task.block-size or give more text."
            )
        report = {
            "documents": len(texts),
            "tokens": len(tokens),
            "blocks": len(blocks),
            "tokens_left_out": left_out,
        }
        num_bytes = sum(len(text.encode()) for text in texts)
        rows = [{"input_ids": block} for block in blocks]
        return Features(
            rows, report, num_rows=len(blocks), context=num_bytes, where="block {}".format
        )

    def collate(self, pad_token_id):
        def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
            inputs = pad_inputs(rows, pad_token_id)
            mask = inputs["attention_mask"]
            inputs["labels"] = inputs["input_ids"].masked_fill(mask == 0, -100)
            if mask.all():
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

    def loss(self, outputs, labels, num_items):
        return outputs.logits.sum() / num_items  # a LossHead's losses

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
    """Yield full blocks while reading; each repeats the last token of the block before."""
    tokens = [tokenizer.eos_token_id]
    for text in task.texts(examples):
        tokens += [*token_ids(tokenizer, [text])[0], tokenizer.eos_token_id]
        while len(tokens) >= task.block_size:
            yield {"input_ids": tokens[: task.block_size]}
            tokens = tokens[task.block_size - 1 :]
