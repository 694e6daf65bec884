"""Extractive question answering, SQuAD v1 and v2, on a causal model.

A causal model reads the question first, so that every context token has seen it, and the
no-answer slot is the last token, the only one that has seen the whole window: position 0 sees
nothing but itself. A row is `question <eos> window of the context <eos>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from pipelines.errors import DataError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.answer_forms import read_answers
from pipelines.tasks.base import (
    Features,
    Objective,
    Score,
    Task,
    check_truncated,
    text_of,
    token_ids,
)
from pipelines.tasks.cells import to_python
from pipelines.tasks.label_forms import bit
from pipelines.tasks.spans import (
    CONTRACTION_OR_SYMBOL,
    Answer,
    Question,
    Window,
    gold_span,
    is_widened,
    share_of_first,
    splitting,
    trim,
    window_starts,
)


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """Find the answer to a question as a span of its context."""

    question_column: str = "question"
    """Column that holds the question."""
    context_column: str = "context"
    """Column that holds the context."""
    answers_column: str = "answers"
    """Column of {"text": [...], "answer_start": [...]}, or of a list of {"text", "answer_start"};
    empty: not answerable."""
    version_2_with_negative: bool = False
    """Allow "no answer", as SQuAD v2 does."""
    null_score_diff_threshold: float = 0.0
    """Answer "" when no answer scores higher than the best span by more than this."""
    max_length: Annotated[int, Ge(16)] = 384
    """Tokens of a window with its question."""
    stride: Annotated[int, Ge(0)] = 128
    """Tokens that two windows of one context share."""
    max_question_length: Annotated[int, Ge(1)] = 64
    """Tokens kept of a question; the run reports how many were cut."""
    max_truncated_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """Stop when a larger share of the questions was cut, or their answers lost."""
    max_answer_length: Annotated[int, Ge(1)] = 30
    """Tokens of the longest answer."""
    n_best: Annotated[int, Ge(1)] = 20
    """Starts and ends to combine in each window."""

    does: ClassVar[str] = "answers questions by spans of a context"
    limits: ClassVar[str] = (
        "It answers with a span of the context, also where the context is wrong."
    )
    pipeline_tag: ClassVar[str] = "question-answering"
    example_imports: ClassVar[tuple[str, ...]] = (
        "from tokenizers import Regex",
        "from tokenizers import pre_tokenizers as pre",
    )

    objective: ClassVar[Objective] = "head"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    head: ClassVar[str | None] = "qa_outputs"
    peft_task_type: ClassVar[str] = "QUESTION_ANS"
    cut_field: ClassVar[str] = "max_question_length"
    grouped_by: ClassVar[str] = "context"
    needs_offsets: ClassVar[bool] = True

    def inputs(self, row):
        return row[self.question_column], row[self.context_column]

    def group(self, row):
        return row[self.context_column]

    def example(self, examples, index, row, labels, *, labelled=True) -> Question:
        """Check a row; the gold text must stand in the context where it is said to."""
        where = examples.where(index)
        for column in (self.question_column, self.context_column):
            if not text_of(examples, index, row, column).strip():
                raise DataError(f"{where}: column {column!r} holds {row[column]!r}, not a text.")
        identity, context = str(row.get("id", index)), row[self.context_column]
        if not labelled:
            return Question(identity, context, {"text": []})
        if self.answers_column not in row and bit(to_python(row.get("is_impossible"))) != 1:
            raise DataError(
                f"{where}: no column {self.answers_column!r}. Columns: {', '.join(row)}."
            )
        try:
            answers = read_answers(row.get(self.answers_column), row.get("is_impossible"))
        except ValueError as error:
            raise DataError(f"{where}: column {self.answers_column!r} {error}") from None
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if start < 0 or not context.startswith(text, start):
                raise DataError(f"{where}: answer {text!r} is not at character {start}.")
        if not answers["text"] and not self.version_2_with_negative:
            raise DataError(
                f"{where}: a question without an answer. For SQuAD v2 use "
                "--task.version-2-with-negative."
            )
        return Question(identity, context, answers)

    def features(self, examples, tokenizer, labels, *, training, labelled=True) -> Features:
        questions = [
            self.example(examples, i, row, labels, labelled=labelled)
            for i, row in enumerate(examples.rows)
        ]
        if not questions:
            raise DataError(f"{examples.origin}: no rows.")
        asked = [row[self.question_column] for row in examples.rows]
        encoded = token_ids(tokenizer, asked)
        contexts = list(dict.fromkeys(question.context for question in questions))
        read = splitting(tokenizer)(
            contexts, add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )
        context_tokens = dict(
            zip(contexts, zip(read["input_ids"], read["offset_mapping"], strict=True), strict=True)
        )
        eos = tokenizer.eos_token_id
        longest = min(self.max_question_length, self.max_length // 2)
        rows, windows, num_cut, num_lost, num_widened, num_too_long = [], [], 0, 0, 0, 0
        for number, (question, question_ids) in enumerate(zip(questions, encoded, strict=True)):
            num_cut += len(question_ids) > longest
            question_ids = question_ids[:longest]
            ids, offsets = context_tokens[question.context]
            gold = gold_span(offsets, question.answers)
            num_widened += gold is not None and is_widened(question, offsets, gold)
            num_too_long += gold is not None and gold[1] - gold[0] >= self.max_answer_length
            room = self.max_length - len(question_ids) - 2
            held = not question.answers["text"]
            for start in window_starts(len(ids), room, min(self.stride, room // 2)):
                end = min(start + room, len(ids))
                row = [*question_ids, eos, *ids[start:end], eos]
                first = len(question_ids) + 1
                null = len(row) - 1
                target = [null, null]
                if gold and start <= gold[0] and gold[1] < end:
                    target = [first + gold[0] - start, first + gold[1] - start]
                    held = True
                rows.append({"input_ids": row, "labels": [*target, first, len(row)]})
                windows.append(Window(number, first, offsets[start:end]))
            num_lost += not held
        for count in (num_cut, num_lost):
            check_truncated(examples, count, len(questions), self.max_truncated_fraction)
        report = {
            "questions": len(questions),
            "windows": len(rows),
            "questions_cut": num_cut,
            "answers_lost": num_lost,
            "answers_widened": num_widened,
            "answers_too_long": num_too_long,
        }
        return Features(
            rows,
            report,
            num_rows=len(questions),
            context=(questions, windows),
            where=lambda row: examples.where(windows[row].question),
            lengths=[len(ids) for ids in encoded],
        )

    def loss(self, outputs, labels, num_items):
        """Return the mean cross-entropy of start and end.

        `labels` is (batch, 4): start, end, first and one past the last position to choose from.
        Without these bounds the padding of a batch would take part in the softmax.
        """
        import torch
        import torch.nn.functional as F

        start, end, first, stop = labels.unsqueeze(-1).unbind(1)
        places = torch.arange(outputs.start_logits.shape[1], device=labels.device)
        outside = (places < first) | (places >= stop)  # (batch, length)
        total = torch.zeros((), device=labels.device)
        for logits, target in ((outputs.start_logits, start), (outputs.end_logits, end)):
            masked = logits.float().masked_fill(outside, float("-inf"))
            total = total + F.cross_entropy(masked, target.squeeze(-1), reduction="sum")
        num_rows = num_items / labels.shape[1]
        return total / (2 * num_rows)

    def reduce_logits(self, logits, labels):
        """Return (batch, length, 2)."""
        import torch

        return torch.stack(logits[:2], dim=-1).float()

    def score(self, prediction, held_out, labels) -> Score:
        from pipelines import metrics
        from pipelines.metrics.squad_scoring import best_over_answers, token_f1

        questions, windows = held_out.context
        lengths = [len(row["input_ids"]) for row in held_out.dataset]
        decoded = self.decode(prediction.predictions, questions, windows, lengths)
        best = [answers[0].text for answers in decoded]
        truth = [{"id": str(i), "answers": q.answers} for i, q in enumerate(questions)]
        if self.version_2_with_negative:
            guesses = [span_and_margin(str(i), answers) for i, answers in enumerate(decoded)]
            found = metrics.load("squad_v2").compute(
                predictions=guesses,
                references=truth,
                no_answer_threshold=self.null_score_diff_threshold,
            )
        else:
            guesses = [{"id": str(i), "prediction_text": text} for i, text in enumerate(best)]
            found = metrics.load("squad").compute(predictions=guesses, references=truth)
        values = {
            "exact_match" if key == "exact" else key: value / (100 if is_share(key) else 1)
            for key, value in found.items()
            if not key.endswith("total")
        }
        values["loss"] = mean_loss(prediction.predictions, prediction.label_ids)
        rows = [
            [best_over_answers(token_f1, text, question.answers["text"])]
            for text, question in zip(best, questions, strict=True)
        ]
        interval = bootstrap(rows, lambda means: means[:, 0])
        return Score(values, "f1", interval, num_rows=len(questions))

    def predictions(self, logits, given, labels):
        questions, windows = given.context
        lengths = [len(row["input_ids"]) for row in given.dataset]
        decoded = self.decode(logits, questions, windows, lengths)
        return [
            {"answer": best.text, "start": best.start, "end": best.end, "score": share}
            for best, share in ((answers[0], share_of_first(answers)) for answers in decoded)
        ]

    @property
    def evaluator_name(self):
        return "question-answering"

    def evaluator_row(self, inputs):
        if sorted(inputs) != ["context", "question"]:
            raise DataError(f"inputs are {', '.join(inputs)}, not question and context.")
        return {
            self.question_column: inputs["question"],
            self.context_column: inputs["context"],
        }

    def metric_inputs(self, examples, predictions, labels, columns):
        ids = [str(row.get("id", index)) for index, row in enumerate(examples.rows)]
        answers = [p["answer"] for p in predictions]
        found = [{"id": i, "prediction_text": a} for i, a in zip(ids, answers, strict=True)]
        if "no_answer_probability" in columns:
            found = [
                each | {"no_answer_probability": float(not each["prediction_text"])}
                for each in found
            ]
        gold = [self.example(examples, i, row, ()).answers for i, row in enumerate(examples.rows)]
        references = [{"id": i, "answers": a} for i, a in zip(ids, gold, strict=True)]
        return {"predictions": found, "references": references}

    def row(self, text):
        raise DataError(
            "a question needs its context. Give dictionaries with the columns "
            f"{self.question_column!r} and {self.context_column!r}."
        )

    def example_row(self):
        return {self.question_column: "Who wrote?", self.context_column: "Ada wrote on Monday."}

    def example_lines(self):
        lines = [
            'question, context = "Who wrote?", "Ada wrote on Monday."',
            'asked = tokenizer(question, add_special_tokens=False)["input_ids"]',
            "backend = tokenizer.backend_tokenizer  # digits and punctuation are not merged",
            f'split = pre.Split(Regex(r"{CONTRACTION_OR_SYMBOL}"), behavior="isolated")',
            "backend.pre_tokenizer = pre.Sequence([split, backend.pre_tokenizer])",
            "read = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)",
            "eos = tokenizer.eos_token_id  # question, context and the slot of no answer",
            'ids = torch.tensor([[*asked, eos, *read["input_ids"], eos]])',
            "with torch.inference_mode():",
            "    output = model(input_ids=ids)",
            "start, end = output.start_logits[0], output.end_logits[0]",
            "first = len(asked) + 1",
            "scores = start[first:-1, None] + end[None, first:-1]",
            f"allowed = torch.ones_like(scores).triu().tril({self.max_answer_length - 1}).bool()",
            'scores = scores.masked_fill(~allowed, float("-inf"))',
            "i, j = divmod(int(scores.argmax()), len(scores))",
            'answer = context[read["offset_mapping"][i][0] : read["offset_mapping"][j][1]].strip()',
        ]
        if self.version_2_with_negative:
            lines += [
                f"if start[-1] + end[-1] > scores.max() + {self.null_score_diff_threshold}:",
                '    answer = ""',
            ]
        return [*lines, "print(answer)"]

    def decode(
        self,
        logits: Any,
        questions: Sequence[Question],
        windows: Sequence[Window],
        lengths: Sequence[int],
    ) -> list[list[Answer]]:
        """Return the n best spans of each question, best first, with "" among them in v2.

        `logits` is (windows, length, 2) for start and end; `lengths` are the rows' true lengths,
        whose last token is the no-answer slot.
        """
        found: list[list[Answer]] = [[] for _ in questions]
        null = [float("inf")] * len(questions)
        for row, window, length in zip(logits, windows, lengths, strict=True):
            number = window.question
            null[number] = min(null[number], float(row[length - 1].sum()))
            context = questions[number].context
            for score, first, last in self.best_spans(row, window):
                start, end = trim(context, window.offsets[first][0], window.offsets[last][1])
                if start < end:
                    found[number].append(Answer(context[start:end], score, start, end))
        ranked = []
        for answers, null_score in zip(found, null, strict=True):
            answers.sort(key=lambda answer: -answer.score)
            by_place: dict[Any, Answer] = {}
            for answer in answers:
                by_place.setdefault((answer.start, answer.end), answer)
            unique = list(by_place.values())[: self.n_best]
            if self.version_2_with_negative or not unique:
                margin = null_score - (unique[0].score if unique else float("-inf"))
                place = 0 if margin > self.null_score_diff_threshold else 1
                unique.insert(place, Answer("", null_score))
            ranked.append(unique)
        return ranked

    def best_spans(self, row: Any, window: Window) -> list[tuple[float, int, int]]:
        """Return (score, first, last) context tokens of the best spans of a window."""
        import numpy as np

        span = np.asarray(row)[window.first : window.first + len(window.offsets)]
        starts = np.argsort(-span[:, 0], kind="stable")[: self.n_best]
        ends = np.argsort(-span[:, 1], kind="stable")[: self.n_best]
        grid = span[starts, 0][:, None] + span[ends, 1][None]
        width = ends[None] - starts[:, None]
        kept = np.argwhere((width >= 0) & (width < self.max_answer_length))
        ordered = sorted(kept, key=lambda place: -grid[tuple(place)])[: self.n_best]
        return [(float(grid[i, j]), int(starts[i]), int(ends[j])) for i, j in ordered]


def mean_loss(logits: Any, labels: Any) -> float:
    """Return `QuestionAnswering.loss` over all windows, from (windows, length, 2) logits."""
    import numpy as np
    from scipy.special import log_softmax

    total = 0.0
    for row, (start, end, first, stop) in zip(logits, labels, strict=True):
        logs = log_softmax(np.asarray(row[first:stop], dtype=np.float64), axis=0)
        total -= logs[start - first, 0] + logs[end - first, 1]
    return float(total / (2 * len(labels)))


def span_and_margin(identity: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the best span, and by how much "" scores above it, in the form of `squad_v2`."""
    null = next(answer for answer in answers if answer.start is None)
    span = next((answer for answer in answers if answer.start is not None), None)
    return {
        "id": identity,
        "prediction_text": span.text if span else "",
        "no_answer_probability": null.score - span.score if span else 0.0,
    }


def is_share(key: str) -> bool:
    """Tell a score in percent from a threshold."""
    return not key.endswith("thresh")
