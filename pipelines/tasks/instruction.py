"""Instruction tuning: a reply to a prompt, or to the turns of a chat."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Lt

from pipelines.data.encoded_rows import EncodedSplit, LazySequence, RowSink, Sinks
from pipelines.data.padding import Batch, PaddingCollator, pad_inputs, pad_right
from pipelines.data.rows_on_disk import map_rows
from pipelines.errors import DataError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.base import (
    Chart,
    Features,
    Objective,
    RowResult,
    SamplePrompt,
    Score,
    ShownResult,
    check_truncated,
    to_row_results,
)
from pipelines.tasks.chat_forms import looks_like_turns
from pipelines.tasks.generation import trim_reply
from pipelines.tasks.replies import IGNORED, Prompt, ReplyTask, as_arrays, encode_rows

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from pipelines.data.rows import Examples
    from pipelines.tasks.generation import Continuation

ROUGE_WORD = re.compile("[a-z0-9]")
"""The characters of words to rouge-score; it drops all others."""


@dataclass(frozen=True)
class ReplyCollator(PaddingCollator):
    """Pad exchanges and their labels to a batch."""

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of some exchanges; padding is not learned."""
        labels = pad_right([row["labels"] for row in rows], IGNORED, self.multiple)
        return pad_inputs(rows, self.pad_token_id, self.multiple) | {"labels": labels}


@dataclass(frozen=True)
class PromptReferences:
    """A different prompt of the evaluation rows, with the replies of all its rows.

    `row` is the first of them.
    """

    ids: Sequence[int]
    references: list[str]
    row: int


@dataclass(frozen=True)
class EncodedExchange:
    """A row as the model reads it, with its tokens before truncation, and its prompt."""

    row: dict[str, Any]
    length: int
    prompt_hash: bytes
    prompt: PromptReferences | None
    """That of this row alone; None in rows to train on."""


class Prompts:
    """The different prompts of rows, in the order of their first rows."""

    def __init__(self) -> None:
        self.positions: dict[bytes, int] = {}
        """The position of each prompt, by a hash of its tokens before truncation."""
        self.kept: list[PromptReferences] = []

    def add(self, exchange: EncodedExchange, row: int) -> None:
        """Add a row's prompt; only its hash, if the row has no more of it."""
        position = self.positions.setdefault(exchange.prompt_hash, len(self.positions))
        if exchange.prompt is None:
            return
        if position == len(self.kept):
            self.kept.append(PromptReferences(exchange.prompt.ids, [], row))
        self.kept[position].references.extend(exchange.prompt.references)

    def write(self, sink: RowSink) -> Sequence[dict[str, Any]]:
        """Write the prompts that were kept."""
        for each in self.kept:
            ids, references, row = each.ids, each.references, each.row
            sink.append({"prompt_ids": ids, "references": references, "row": row})
        return sink.close()


def read_prompt(prompts: Sequence[dict[str, Any]], index: int) -> PromptReferences:
    """Return a prompt that was written."""
    each = prompts[index]
    return PromptReferences(list(map(int, each["prompt_ids"])), each["references"], each["row"])


@dataclass(frozen=True, kw_only=True)
class InstructionTuning(ReplyTask):
    """Write a reply; only replies are learned, each with the EOS that ends it."""

    completion_column: str = "completion"
    """Column of the reply: a text, a list of texts, or SQuAD's {"text": [...]}.
    The first text is learned; all are references of the score."""
    packing: bool = False
    """Pack several examples into a row of max_length, isolated from each other."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of the target spread over all tokens; costs a second forward pass."""

    objective: ClassVar[Objective] = "instruction"

    @property
    def metrics(self) -> dict[str, bool]:
        return {
            "rougeL": True,
            "f1": True,
            "exact_match": True,
            "bleu": True,
            "perplexity": False,
            "loss": False,
        }

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

    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> tuple[Prompt, list[str]]:
        """Return the prompt of a row, and all its replies."""
        location, column = examples.locate(index), self.completion_column
        value = row.get(column)
        is_chat = looks_like_turns(value)
        replies = value.get("text") if isinstance(value, dict) and not is_chat else value
        row = row if replies is value else row | {column: replies}
        if self.chat or is_chat or not isinstance(replies, list):
            prompt, reply = self.read_exchange(row, column, location)
            return prompt, [reply]
        exchanges = [
            self.read_exchange(row | {column: reply}, column, location)
            for reply in replies or [None]
        ]
        return exchanges[0][0], [reply for _, reply in exchanges]

    def oddities(self, examples: Examples, index: int, row: dict[str, Any]) -> Iterator[str]:
        """Yield also each reply, and each without a letter or digit that ROUGE-L counts."""
        yield from super().oddities(examples, index, row)
        for reply in self.example(examples, index, row, None)[1]:
            yield "reply"
            if ROUGE_WORD.search(reply.lower()) is None:
                yield "no Latin"

    def oddity_cautions(self, counts: Counter[str], num_rows: int) -> Iterator[str]:
        """Add a caution if ROUGE-L ignores most replies.

        It counts only Latin letters and digits.
        """
        yield from super().oddity_cautions(counts, num_rows)
        if 2 * counts["no Latin"] > counts["reply"]:
            yield (
                f"{counts['no Latin']:,} of {counts['reply']:,} replies have no Latin letter or "
                "digit, which are all that ROUGE-L counts: compare models by perplexity instead"
            )

    def encode(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        *,
        training: bool,
        sinks: Sinks,
        labelled: bool = True,
    ) -> EncodedSplit:
        make = partial(self.encode_part, examples, tokenizer, labels, training)
        rows, prompts = sinks("rows"), Prompts()
        num_cut, lengths = 0, array("q")
        for each in chain.from_iterable(map_rows(make, examples.sequence)):
            prompts.add(each, len(lengths))
            num_cut += each.length > self.max_length
            lengths.append(each.length)
            rows.append(each.row)
        if not lengths:
            raise DataError(f"{examples.origin}: no rows.")
        check_truncated(examples, num_cut, len(lengths), self.max_truncated_fraction)
        report = {"rows": len(lengths), "rows_cut": num_cut, "prompts": len(prompts.positions)}
        tables = {"rows": rows.close()}
        if not training:
            tables["prompts"] = prompts.write(sinks("prompts"))
        return EncodedSplit(tables, report, lengths)

    def encode_part(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        training: bool,
        positions: range,
    ) -> list[EncodedExchange]:
        """Return the encoded rows at some positions."""
        some = [self.example(examples, index, row, labels) for index, row in examples.at(positions)]
        learned = ((prompt, replies[:1]) for prompt, replies in some)
        part = []
        for (_, replies), [whole] in zip(some, encode_rows(tokenizer, learned), strict=True):
            cut = whole.truncated(self.max_length)
            row = as_arrays({"input_ids": cut.input_ids, "labels": cut.labels})
            # of the whole prompt: prompts that are cut to the same end stay different
            digest = blake2b(array("q", whole.prompt_ids).tobytes(), digest_size=16).digest()
            prompt = None if training else PromptReferences(cut.prompt_ids, replies, -1)
            part.append(EncodedExchange(row, len(whole.input_ids), digest, prompt))
        return part

    def restored(self, examples: Examples, encoded: EncodedSplit) -> Features:
        """Return features whose context are the different prompts. Rows to train on have none."""
        features, prompts = super().restored(examples, encoded), encoded.tables.get("prompts")
        if prompts is None:
            return features
        context = LazySequence(len(prompts), partial(read_prompt, prompts))
        return replace(features, context=context)

    def collate(self, pad_token_id: int, multiple: int = 1) -> ReplyCollator:
        return ReplyCollator(pad_token_id, multiple)

    def score(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> Score:
        """Score the replies' likelihood.

        Predictions are (rows, 2): summed loss and number of learned tokens.
        """
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
        rouge = rouge_of_replies(written, held_out)
        answers = [
            {"id": str(i), "answers": {"text": texts, "answer_start": [0] * len(texts)}}
            for i, texts in enumerate(gold)
        ]
        squad = metrics.load("squad").compute(
            predictions=[{"id": str(i), "prediction_text": t} for i, t in enumerate(guesses)],
            references=answers,
        )
        bleu = metrics.load("sacrebleu").compute(predictions=guesses, references=gold)
        values = {
            "rougeL": sum(rouge) / len(rouge),
            "bleu": bleu["score"],
            "exact_match": squad["exact_match"] / 100,
            "f1": squad["f1"] / 100,
            "ended": sum(reply.ended for reply in written) / len(written),
        }
        interval = bootstrap([[value] for value in rouge], self.statistic)
        return Score(values, "rougeL", interval, num_rows=len(guesses))

    def reply_results(self, written: Sequence[Continuation], held_out: Features) -> list[RowResult]:
        return to_row_results(
            (held_out.locate(prompt.row) for prompt in held_out.context),
            ({"text": trim_reply(reply.text), "ended": reply.ended} for reply in written),
            (list(prompt.references) for prompt in held_out.context),
            [[value] for value in rouge_of_replies(written, held_out)],
        )

    @property
    def chart(self) -> Chart:
        return "lengths"

    def shown(self, result: RowResult) -> ShownResult:
        """Rank by ROUGE-L."""
        rouge = result.values[0]
        detail = f"ROUGE-L {rouge:.3f}" + ("" if result.prediction["ended"] else ", cut")
        return ShownResult(result.prediction["text"], result.reference[0], (rouge,), detail)

    def tokens_read(self, held_out: Features, index: int) -> Sequence[int]:
        ids: Sequence[int] = held_out.context[index].ids
        return ids

    def sample_prompts(
        self, held_out: Features, tokenizer: PreTrainedTokenizerBase, num_rows: int
    ) -> list[SamplePrompt]:
        return [
            SamplePrompt(held_out.locate(each.row), list(each.ids), each.references[0])
            for each in held_out.context[:num_rows]
        ]


def rouge_of_replies(written: Sequence[Continuation], held_out: Features) -> list[float]:
    """Return the ROUGE-L of each reply against the references of its prompt."""
    from pipelines import metrics

    scores: list[float] = metrics.load("rouge").compute(
        predictions=[reply.text for reply in written],
        references=[list(prompt.references) for prompt in held_out.context],
        use_aggregator=False,
    )["rougeL"]
    return scores
