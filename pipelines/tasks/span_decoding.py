"""Turn the logits of windows into ranked answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.tasks.spans import Question, Window, trim


@dataclass(frozen=True)
class Answer:
    """A span of a context, or "" without offsets for no answer.

    `context[start:end] == text`.
    """

    text: str
    score: float
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, kw_only=True)
class SpanDecoder:
    """How spans are chosen; the fields are options of `QuestionAnswering`."""

    n_best: int
    max_answer_length: int
    null_score_diff_threshold: float
    version_2_with_negative: bool

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
        spans: list[list[Answer]] = [[] for _ in questions]
        null_scores = [float("inf")] * len(questions)
        for row, window, length in zip(logits, windows, lengths, strict=True):
            number = window.question
            null_scores[number] = min(null_scores[number], float(row[length - 1].sum()))
            context = questions[number].context
            for score, first, last in self.best_spans(row, window):
                begins, ends = window.offsets[first][0], window.offsets[last][1]
                start, end = trim(context, int(begins), int(ends))
                if start < end:
                    spans[number].append(Answer(context[start:end], score, start, end))
        return [
            self.rank(answers, null_score)
            for answers, null_score in zip(spans, null_scores, strict=True)
        ]

    def best_spans(self, row: Any, window: Window) -> list[tuple[float, int, int]]:
        """Return (score, first, last) context tokens of the best spans of a window."""
        import numpy as np

        logits = np.asarray(row)[window.first : window.first + len(window.offsets)]
        starts = np.argsort(-logits[:, 0], kind="stable")[: self.n_best]
        ends = np.argsort(-logits[:, 1], kind="stable")[: self.n_best]
        scores = logits[starts, 0][:, None] + logits[ends, 1][None]
        widths = ends[None] - starts[:, None]
        allowed = np.argwhere((widths >= 0) & (widths < self.max_answer_length))
        best = sorted(allowed, key=lambda pair: -scores[tuple(pair)])[: self.n_best]
        return [(float(scores[i, j]), int(starts[i]), int(ends[j])) for i, j in best]

    def rank(self, answers: Sequence[Answer], null_score: float) -> list[Answer]:
        """Return the n best spans, each once, with "" first or second.

        "" is added in v2, and if there is no span.
        """
        by_span: dict[tuple[int | None, int | None], Answer] = {}
        for answer in sorted(answers, key=lambda answer: -answer.score):
            by_span.setdefault((answer.start, answer.end), answer)
        ranked = list(by_span.values())[: self.n_best]
        if self.version_2_with_negative or not ranked:
            margin = null_score - (ranked[0].score if ranked else float("-inf"))
            index = 0 if margin > self.null_score_diff_threshold else 1
            ranked.insert(index, Answer("", null_score))
        return ranked


def probability_of_first(answers: Sequence[Answer]) -> float:
    """Return the softmax of the first answer's score among those of the n best."""
    return 1 / sum(math.exp(min(answer.score - answers[0].score, 700)) for answer in answers)


def span_and_margin(identity: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return a prediction for the metric `squad_v2`.

    It holds the best span, and by how much "" scores above it.
    """
    null = next(answer for answer in answers if answer.start is None)
    span = next((answer for answer in answers if answer.start is not None), None)
    return {
        "id": identity,
        "prediction_text": span.text if span else "",
        "no_answer_probability": null.score - span.score if span else 0.0,
    }
