"""Extractive question answering, SQuAD v1 and v2, on a causal model.

The question comes first, so that every token of the context attends to it. The no-answer slot is
the last token, the only one that attends to the whole window. A row is
`question <eos> window of the context <eos>`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Le, Lt

from pipelines.data.encoded_rows import EncodedSplit, LazySequence, Sinks
from pipelines.data.rows_on_disk import map_rows
from pipelines.errors import DataError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.answer_forms import misplaced, read_answers
from pipelines.tasks.base import (
    Chart,
    Features,
    Objective,
    RowResult,
    Score,
    ShownResult,
    Task,
    check_truncated,
    text_of,
    to_row_results,
)
from pipelines.tasks.cells import parse_bit, to_python
from pipelines.tasks.interface import Interface
from pipelines.tasks.span_decoding import (
    Answer,
    SpanDecoder,
    probability_of_first,
    span_and_margin,
)
from pipelines.tasks.spans import (
    BatchEncoder,
    EncodedContext,
    Question,
    Window,
    encode_questions,
    gold_span,
    is_widened,
    window_starts,
)

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from pipelines.data.rows import Examples

COUNTS = ("windows", "questions_cut", "answers_lost", "answers_widened", "answers_too_long")
"""What encoding makes of questions, and may do to them and their answers, for the report."""


@dataclass(frozen=True)
class EncodedQuestion:
    """The rows of a question's windows, each with the place of its tokens in the context."""

    windows: list[tuple[dict[str, Any], dict[str, Any]]]
    """The place, as it is put into a sink, is {} in rows to train on."""
    length: int
    """Tokens of the question before it is cut."""
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """Find the answer to a question as a span of its context."""

    question_column: str = "question"
    """Column that holds the question."""
    context_column: str = "context"
    """Column that holds the context."""
    answers_column: str = "answers"
    """Column of {"text": [...], "answer_start": [...]}, or a list of {"text", "answer_start"}.
    An empty list is a question without an answer."""
    version_2_with_negative: bool = False
    """Allow questions without an answer, as SQuAD v2 does."""
    null_score_diff_threshold: float = 0.0
    """Answer "" if "no answer" scores higher than the best span by more than this."""
    max_length: Annotated[int, Ge(16)] = 384
    """Most tokens of a question with a window of its context."""
    stride: Annotated[int, Ge(0)] = 128
    """Tokens by which two windows of a context overlap."""
    max_question_length: Annotated[int, Ge(1)] = 64
    """Most tokens of a question; longer ones are truncated and counted."""
    max_truncated_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Stop if more than this fraction of questions is truncated, or of answers lost."""
    max_answer_length: Annotated[int, Ge(1)] = 30
    """Most tokens of an answer."""
    n_best: Annotated[int, Ge(1)] = 20
    """Best starts, and best ends, to combine in each window."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of the target spread over all positions that a start, or an end, can have."""

    pipeline_tag: ClassVar[str] = "question-answering"

    objective: ClassVar[Objective] = "head"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    head: ClassVar[str | None] = "qa_outputs"
    distils: ClassVar[bool] = True
    peft_task_type: ClassVar[str] = "QUESTION_ANS"
    cut_field: ClassVar[str] = "max_question_length"
    grouped_by: ClassVar[str] = "context"
    needs_offsets: ClassVar[bool] = True
    reads_windows: ClassVar[bool] = True

    def with_length(self, length: int) -> QuestionAnswering:
        """Return the task with windows of `length` tokens, which overlap by a third at most."""
        return replace(self, max_length=length, stride=min(self.stride, length // 24 * 8))

    def inputs(self, row: dict[str, Any]) -> Hashable:
        return row[self.question_column], row[self.context_column]

    def group(self, row: dict[str, Any]) -> Hashable:
        return str(row[self.context_column])

    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> Question:
        """Check a row: each answer must be in the context at its start."""
        location = examples.locate(index)
        for column in (self.question_column, self.context_column):
            if not text_of(examples, index, row, column).strip():
                raise DataError(f"{location}: column {column!r} holds {row[column]!r}, not a text.")
        context = row[self.context_column]
        if not labelled:
            return Question(context, {"text": []})
        if self.answers_column not in row and parse_bit(to_python(row.get("is_impossible"))) != 1:
            raise DataError(
                f"{location}: no column {self.answers_column!r}. Columns: {', '.join(row)}."
            )
        try:
            answers = read_answers(row.get(self.answers_column), row.get("is_impossible"))
        except ValueError as error:
            raise DataError(f"{location}: column {self.answers_column!r} {error}") from None
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if start < 0 or not context.startswith(text, start):
                raise DataError(f"{location}: {misplaced(text, start, context)}")
        if not answers["text"] and not self.version_2_with_negative:
            raise DataError(
                f"{location}: a question without an answer. For SQuAD v2 use "
                "--task.version-2-with-negative."
            )
        return Question(context, answers)

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
        encoder = BatchEncoder(tokenizer)
        make = partial(self.encode_part, examples, encoder, labels, training, labelled)
        rows, windows = sinks("rows"), sinks("windows")
        lengths, counts = array("q"), Counter[str]()
        for question in chain.from_iterable(map_rows(make, examples.sequence)):
            for row, window in question.windows:
                rows.append(row)
                windows.append({"question": len(lengths), **window})
            counts.update(question.counts)
            lengths.append(question.length)
        if not lengths:
            raise DataError(f"{examples.origin}: no rows.")
        allowed = self.max_truncated_fraction if labelled else 1.0
        for name in ("questions_cut", "answers_lost"):
            check_truncated(examples, counts[name], len(lengths), allowed)
        report = {"questions": len(lengths)} | {name: counts[name] for name in COUNTS}
        tables = {"rows": rows.close(), "windows": windows.close()}
        return EncodedSplit(tables, report, lengths, None if training else {"labelled": labelled})

    def encode_part(
        self,
        examples: Examples,
        encoder: BatchEncoder,
        labels: tuple[str, ...],
        training: bool,
        labelled: bool,
        positions: range,
    ) -> list[EncodedQuestion]:
        """Return the questions of the rows at some positions, in windows of their contexts."""
        eos = int(encoder.tokenizer.eos_token_id)
        longest = min(self.max_question_length, self.max_length // 2)
        texts = (
            (row[self.question_column], question)
            for index, row in examples.at(positions)
            for question in [self.example(examples, index, row, labels, labelled=labelled)]
        )
        part = []
        for question, question_ids, context in encode_questions(encoder, texts):
            gold = gold_span(context.offsets, question.answers)
            found = [*self.windows_of(question_ids[:longest], context, gold, eos)]
            lost = bool(question.answers["text"]) and not any(holds_answer(row) for row, _ in found)
            counts = {
                "windows": len(found),
                "questions_cut": len(question_ids) > longest,
                "answers_lost": lost,
            }
            if gold is not None:
                counts["answers_widened"] = is_widened(question, context.offsets, gold)
                counts["answers_too_long"] = gold[1] - gold[0] >= self.max_answer_length
            windows = [(row, {} if training else window) for row, window in found]
            part.append(EncodedQuestion(windows, len(question_ids), counts))
        return part

    def restored(self, examples: Examples, encoded: EncodedSplit) -> Features:
        """Return features whose context are the questions, and the windows of their contexts.

        Both are read when they are needed. Rows to train on have none.
        """
        rows, num_questions = encoded.tables["windows"], len(encoded.lengths)
        features = replace(
            super().restored(examples, encoded),
            num_rows=num_questions,
            locate=partial(locate_window, examples, rows),
        )
        if encoded.context is None:
            return features
        read = partial(read_question, self, examples, labelled=encoded.context["labelled"])
        windows = LazySequence(len(rows), partial(read_window, rows))
        return replace(features, context=(LazySequence(num_questions, read), windows))

    def windows_of(
        self,
        question_ids: Sequence[int],
        context: EncodedContext,
        gold: tuple[int, int] | None,
        eos: int,
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the rows of the windows of a question's context, each with the place of its tokens.

        A row's `labels` are start, end, first and one past the last position to choose from. Start
        and end are the last position, the no-answer slot, where the window lacks the gold span.
        """
        room = self.max_length - len(question_ids) - 2
        first = len(question_ids) + 1
        num_tokens = len(context.input_ids)
        for start in window_starts(num_tokens, room, min(self.stride, room // 2)):
            end = min(start + room, num_tokens)
            row = [*question_ids, eos, *context.input_ids[start:end], eos]
            target = [len(row) - 1] * 2
            if gold and start <= gold[0] and gold[1] < end:
                target = [first + gold[0] - start, first + gold[1] - start]
            window = {"first": first, "offsets": context.offsets[start:end].ravel()}
            yield {"input_ids": row, "labels": [*target, first, len(row)]}, window

    def loss(self, outputs: Any, labels: torch.Tensor, num_items: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of start and end, smoothed by `label_smoothing`.

        `labels` is (batch, 4): start, end, first and one past the last position to choose from.
        These bounds exclude the padding of a batch from the softmax.
        """
        import torch

        start, end, _, _ = labels.unsqueeze(-1).unbind(1)
        outside = positions_outside(outputs.start_logits, labels)
        total = torch.zeros((), device=labels.device)
        for logits, target in ((outputs.start_logits, start), (outputs.end_logits, end)):
            total = total + position_loss(logits, target, outside, self.label_smoothing)
        num_rows = num_items / labels.shape[1]
        return total / (2 * num_rows)

    def distillation_loss(
        self,
        outputs: Any,
        teacher: Any,
        labels: torch.Tensor,
        num_items: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Return the mean divergence of the probabilities of start and of end."""
        from pipelines.tasks.distances import divergence

        lowest = -1e4  # not minus infinity, whose difference to itself is no number
        outside = positions_outside(outputs.start_logits, labels)
        apart = [
            divergence(
                getattr(outputs, name).float().masked_fill(outside, lowest),
                getattr(teacher, name).float().masked_fill(outside, lowest),
                temperature,
            ).sum()
            for name in ("start_logits", "end_logits")
        ]
        num_rows = num_items / labels.shape[1]
        return (apart[0] + apart[1]) / (2 * num_rows)

    def reduce_logits(self, logits: Any, labels: torch.Tensor | None) -> torch.Tensor:
        """Return (batch, length, 2)."""
        import torch

        return torch.stack(logits[:2], dim=-1).float()

    def score(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> Score:
        from pipelines import metrics

        questions, decoded = self.decode_rows(prediction.predictions, held_out)
        best = [answers[0].text for answers in decoded]
        truth = [{"id": str(i), "answers": q.answers} for i, q in enumerate(questions)]
        if self.version_2_with_negative:
            guesses = [span_and_margin(str(i), answers) for i, answers in enumerate(decoded)]
            values = metrics.load("squad_v2").compute(
                predictions=guesses,
                references=truth,
                no_answer_threshold=self.null_score_diff_threshold,
            )
        else:
            guesses = [{"id": str(i), "prediction_text": text} for i, text in enumerate(best)]
            values = metrics.load("squad").compute(predictions=guesses, references=truth)
        values = {
            "exact_match" if key == "exact" else key: value / (100 if is_percentage(key) else 1)
            for key, value in values.items()
            if not key.endswith("total")
        }
        values["loss"] = mean_loss(prediction.predictions, prediction.label_ids)
        interval = bootstrap(self.f1_of_answers(best, questions), self.statistic)
        return Score(values, "f1", interval, num_rows=len(questions))

    def row_results(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> list[RowResult]:
        questions, decoded = self.decode_rows(prediction.predictions, held_out)
        windows = held_out.context[1]
        best = [answers[0].text for answers in decoded]
        return to_row_results(
            (held_out.locate(first_window(windows, number)) for number in range(len(questions))),
            as_predictions(decoded),
            (question.answers["text"] for question in questions),
            self.f1_of_answers(best, questions),
        )

    @property
    def chart(self) -> Chart:
        return "lengths"

    def shown(self, result: RowResult) -> ShownResult:
        """Rank by F1, wrong answers by how sure the model is of them."""
        f1, score = result.values[0], result.prediction["score"]
        detail = f"F1 {f1:.2f}, probability {score:.3f}"
        reference = (result.reference or [""])[0]
        return ShownResult(
            result.prediction["answer"], reference, (f1, score if f1 == 1 else -score), detail
        )

    def tokens_read(self, held_out: Features, index: int) -> Sequence[int]:
        """Return the question with the window that holds its answer, or with the first one."""
        windows = held_out.context[1]
        first, stop = first_window(windows, index), first_window(windows, index + 1)
        own = held_out.dataset[first:stop]
        ids: Sequence[int] = next(filter(holds_answer, own), own[0])["input_ids"]
        return ids

    def f1_of_answers(
        self, answers: Sequence[str], questions: Sequence[Question]
    ) -> list[list[float]]:
        """Return [F1] of each answer, by the rules of SQuAD's version."""
        from pipelines.metrics.squad_scoring import best_f1, best_over_answers, token_f1

        gold = [question.answers["text"] for question in questions]
        if self.version_2_with_negative:
            return [
                [best_over_answers(token_f1, answer, texts)]
                for answer, texts in zip(answers, gold, strict=True)
            ]
        return [[best_f1(answer, texts)] for answer, texts in zip(answers, gold, strict=True)]

    def predictions(
        self, logits: Any, given: Features, labels: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        return as_predictions(self.decode_rows(logits, given)[1])

    def decode_rows(
        self, logits: Any, given: Features
    ) -> tuple[Sequence[Question], list[list[Answer]]]:
        """Return the questions of encoded rows, with the n best answers of each."""
        questions, windows = given.context
        lengths = [len(row["input_ids"]) for row in given.dataset]
        return questions, self.decode(logits, questions, windows, lengths)

    @property
    def metrics(self) -> dict[str, bool]:
        return {"f1": True, "exact_match": True, "loss": False}

    @property
    def evaluator_name(self) -> str | None:
        return "question-answering"

    def evaluator_row(self, inputs: Mapping[str, str | None]) -> dict[str, Any]:
        if sorted(inputs) != ["context", "question"]:
            raise DataError(f"inputs are {', '.join(inputs)}, not question and context.")
        return {
            self.question_column: inputs["question"],
            self.context_column: inputs["context"],
        }

    def metric_inputs(
        self,
        examples: Examples,
        predictions: Sequence[dict[str, Any]],
        labels: tuple[str, ...],
        columns: Collection[str],
    ) -> dict[str, list[Any]]:
        # by position: a file may repeat its ids, and the metrics keep one answer of each id
        found = [
            {"id": str(index), "prediction_text": each["answer"]}
            for index, each in enumerate(predictions)
        ]
        if "no_answer_probability" in columns:
            found = [
                each | {"no_answer_probability": float(not each["prediction_text"])}
                for each in found
            ]
        references = [
            {"id": str(index), "answers": self.example(examples, index, row, ()).answers}
            for index, row in enumerate(examples.rows)
        ]
        return {"predictions": found, "references": references}

    @property
    def interface(self) -> Interface:
        return Interface((self.question_column, self.context_column), "answer")

    def row(self, text: str) -> dict[str, Any]:
        raise DataError(
            "a question needs its context. Give dictionaries with the columns "
            f"{self.question_column!r} and {self.context_column!r}."
        )

    def decode(
        self,
        logits: Any,
        questions: Sequence[Question],
        windows: Sequence[Window],
        lengths: Sequence[int],
    ) -> list[list[Answer]]:
        """Return the n best answers of each question, see `SpanDecoder.decode`."""
        decoder = SpanDecoder(
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
            null_score_diff_threshold=self.null_score_diff_threshold,
            version_2_with_negative=self.version_2_with_negative,
        )
        return decoder.decode(logits, questions, windows, lengths)


def as_predictions(decoded: Sequence[Sequence[Answer]]) -> list[dict[str, Any]]:
    """Return the best answer of each question, with its probability among the n best."""
    return [
        {
            "answer": answers[0].text,
            "start": answers[0].start,
            "end": answers[0].end,
            "score": probability_of_first(answers),
        }
        for answers in decoded
    ]


def read_window(rows: Sequence[dict[str, Any]], index: int) -> Window:
    """Return a window that was put into a sink."""
    row = rows[index]
    return Window(row["question"], row["first"], row["offsets"].reshape(-1, 2))


def read_question(
    task: QuestionAnswering, examples: Examples, index: int, *, labelled: bool
) -> Question:
    """Return the question of a row."""
    assert isinstance(examples.rows, Sequence)
    return task.example(examples, index, examples.rows[index], None, labelled=labelled)


def locate_window(examples: Examples, windows: Sequence[dict[str, Any]], index: int) -> str:
    """Return the file and line of the row that a window is of."""
    return examples.locate(windows[index]["question"])


def first_window(windows: Sequence[Window], question: int) -> int:
    """Return the position of the first window of a question; its others follow."""
    return bisect_left(windows, question, key=lambda window: window.question)


def holds_answer(row: dict[str, Any]) -> bool:
    """Tell whether a window's target is a span and not the no-answer slot."""
    start, _, _, stop = row["labels"]
    return bool(start < stop - 1)


def positions_outside(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return which positions cannot be chosen, (batch, length), by the bounds in the labels."""
    import torch

    _, _, first, stop = labels.unsqueeze(-1).unbind(1)
    positions = torch.arange(logits.shape[1], device=labels.device)
    return (positions < first) | (positions >= stop)


def position_loss(
    logits: torch.Tensor, target: torch.Tensor, outside: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Return the summed cross-entropy of positions.

    `logits` is (batch, length), `target` (batch, 1). `outside`, (batch, length), excludes positions
    from the softmax, and from those that smoothing spreads a part of the target over.
    """
    from torch.nn.functional import cross_entropy

    masked = logits.float().masked_fill(outside, float("-inf"))
    loss = cross_entropy(masked, target.squeeze(-1), reduction="sum")
    if not label_smoothing:
        return loss
    logs = masked.log_softmax(-1).masked_fill(outside, 0.0)
    spread = -(logs.sum(-1) / (~outside).sum(-1)).sum()
    return (1 - label_smoothing) * loss + label_smoothing * spread


def mean_loss(logits: Any, labels: Any) -> float:
    """Return `QuestionAnswering.loss` over all windows, without smoothing.

    `logits` is (windows, length, 2).
    """
    import numpy as np
    from scipy.special import log_softmax

    total = 0.0
    for row, (start, end, first, stop) in zip(logits, labels, strict=True):
        logs = log_softmax(np.asarray(row[first:stop], dtype=np.float64), axis=0)
        total -= logs[start - first, 0] + logs[end - first, 1]
    return float(total / (2 * len(labels)))


def is_percentage(key: str) -> bool:
    """Tell a score in percent from a threshold."""
    return not key.endswith("thresh")
