"""Instruction tuning: a reply to a prompt, or to the turns of a chat."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Lt

from pipelines.data.padding import pad_inputs, pad_right
from pipelines.errors import DataError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.base import Features, Objective, Score, check_truncated
from pipelines.tasks.chat_forms import looks_like_turns
from pipelines.tasks.replies import IGNORED, ReplyTask, exchange

if TYPE_CHECKING:
    from pipelines.tasks.generation import Continuation

ROUGE_WORD = re.compile("[a-z0-9]")
"""What rouge-score keeps of a text."""


@dataclass(frozen=True)
class Asked:
    """A prompt of the evaluation rows, with the replies that its rows hold."""

    ids: Sequence[int]
    references: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class InstructionTuning(ReplyTask):
    """Write a reply; only replies are learned, each with the EOS that ends it."""

    completion_column: str = "completion"
    """Column of the reply: a text, a list of texts, or SQuAD's {"text": [...]}. Of several the
    first is learned, and all are references of the score."""
    packing: bool = False
    """Fill rows of max_length with several examples, none of which sees another."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the target that is spread over all tokens; costs a further forward pass."""

    objective: ClassVar[Objective] = "instruction"

    @property
    def reply_column(self) -> str:
        return self.completion_column

    @property
    def isolates_rows(self) -> bool:
        return self.packing

    def trainer_options(self) -> dict[str, Any]:
        return {
            "max_length": self.max_length,
            "packing": self.packing,
            "label_smoothing_factor": self.label_smoothing,
        }

    def example(self, examples, index, row, labels, *, labelled=True):
        """Return what a row asks, and all replies that it holds."""
        where, column = examples.where(index), self.completion_column
        value = row.get(column)
        held = looks_like_turns(value)
        replies = value.get("text") if isinstance(value, dict) and not held else value
        row = row if replies is value else row | {column: replies}
        if self.chat or held or not isinstance(replies, list):
            prompt, reply = self.said(row, column, where)
            return prompt, [reply]
        said = [self.said(row | {column: reply}, column, where) for reply in replies or [None]]
        return said[0][0], [reply for _, reply in said]

    def label_cautions(self, train):
        """Add a caution where ROUGE-L, which counts Latin letters and digits, sees no reply."""
        yield from super().label_cautions(train)
        replies = [
            reply
            for index, row in enumerate(train.rows)
            for reply in self.example(train, index, row, None)[1]
        ]
        num_unseen = sum(ROUGE_WORD.search(reply.lower()) is None for reply in replies)
        if 2 * num_unseen > len(replies):
            yield (
                f"{num_unseen:,} of {len(replies):,} replies have no Latin letter or digit, which "
                "are all that ROUGE-L counts: compare models by perplexity instead"
            )

    def features(self, examples, tokenizer, labels, *, training, labelled=True) -> Features:
        import numpy as np

        rows: list[dict[str, Any]] = []
        references: dict[tuple[int, ...], list[str]] = {}
        num_cut, lengths = 0, []
        for index, row in enumerate(examples.rows):
            prompt, replies = self.example(examples, index, row, labels)
            whole = exchange(tokenizer, prompt, replies[0])
            num_cut += len(whole.input_ids) > self.max_length
            lengths.append(len(whole.input_ids))
            kept = whole.fitted(self.max_length)
            ids = {"input_ids": kept.input_ids, "labels": kept.labels}
            rows.append({name: np.array(each, np.int32) for name, each in ids.items()})
            references.setdefault(tuple(kept.prompt_ids), []).extend(replies)
        if not rows:
            raise DataError(f"{examples.origin}: no rows.")
        check_truncated(examples, num_cut, len(rows), self.max_truncated_fraction)
        prompts = [Asked(ids, texts) for ids, texts in references.items()]
        report = {"rows": len(rows), "rows_cut": num_cut, "prompts": len(prompts)}
        return Features(
            rows,
            report,
            num_rows=len(rows),
            context=prompts,
            where=examples.where,
            lengths=lengths,
        )

    def collate(self, pad_token_id, multiple=1):
        def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
            inputs = pad_inputs(rows, pad_token_id, multiple)
            return inputs | {
                "labels": pad_right([row["labels"] for row in rows], IGNORED, multiple)
            }

        return batch

    def score(self, prediction, held_out, labels) -> Score:
        """Score the likelihood of the replies, from (rows, 2): summed loss and learned tokens."""
        import numpy as np

        rows = np.asarray(prediction.predictions, dtype=np.float64)
        nll, count = rows.sum(0)
        low, high = bootstrap(rows, lambda means: np.exp(means[:, 0] / means[:, 1]))
        values = {"loss": nll / count, "perplexity": math.exp(nll / count)}
        values["reply_tokens"] = int(count)
        return Score(values, "perplexity", (low, high), num_rows=len(rows))

    def score_replies(self, written: Sequence[Continuation], held_out: Features) -> Score:
        """Score generated replies against the references of their prompts."""
        from pipelines import metrics

        guesses = [reply.text for reply in written]
        gold = [list(prompt.references) for prompt in held_out.context]
        rouge = metrics.load("rouge").compute(
            predictions=guesses, references=gold, use_aggregator=False
        )["rougeL"]
        answers = [
            {"id": str(i), "answers": {"text": texts, "answer_start": [0] * len(texts)}}
            for i, texts in enumerate(gold)
        ]
        found = metrics.load("squad").compute(
            predictions=[{"id": str(i), "prediction_text": t} for i, t in enumerate(guesses)],
            references=answers,
        )
        values = {
            "rougeL": sum(rouge) / len(rouge),
            "bleu": metrics.load("sacrebleu").compute(predictions=guesses, references=gold)[
                "score"
            ],
            "exact_match": found["exact_match"] / 100,
            "f1": found["f1"] / 100,
            "ended": sum(reply.ended for reply in written) / len(written),
        }
        interval = bootstrap([[value] for value in rouge], lambda means: means[:, 0])
        return Score(values, "rougeL", interval, num_rows=len(guesses))
