"""Exact match and F1 of SQuAD v1, in percent, as the official script gives them."""

from typing import Any

from pipelines.metrics import base
from pipelines.metrics.squad_scoring import best_f1, exact_match


class Squad(base.AnswerMetric):
    """Exact match and F1 of SQuAD v1, in percent.

    A question without a prediction scores 0, as in the official script.
    """

    def reference(self, value: Any) -> dict[str, Any]:
        row = super().reference(value)
        if not row["answers"]["text"]:
            raise ValueError(f"question {row['id']!r} has no answer. Use squad_v2.")
        return row

    def _compute(
        self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]
    ) -> dict[str, float]:
        given = {row["id"]: row["prediction_text"] for row in predictions}
        exact, f1 = 0.0, 0.0
        for row in references:
            guess = given.get(row["id"])
            if guess is None:
                continue
            gold = row["answers"]["text"]
            exact += max(exact_match(guess, answer) for answer in gold)
            f1 += best_f1(guess, gold)
        return {
            "exact_match": 100.0 * exact / len(references),
            "f1": 100.0 * f1 / len(references),
        }
