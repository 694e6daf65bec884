"""Exact match and F1 of SQuAD v2, in percent, as the official script gives them."""

from typing import Any

import datasets

from pipelines.metrics import base
from pipelines.metrics.squad_scoring import (
    best_over_answers,
    exact_match,
    find_best_threshold,
    token_f1,
)


class SquadV2(base.AnswerMetric):
    """Exact match and F1 of SQuAD v2, in percent, also by answerability."""

    inputs = (
        'predictions: {"id", "prediction_text", "no_answer_probability"}; references: {"id", '
        '"answers"}, with empty lists where there is no answer.'
    )

    def feature_types(self) -> datasets.Features:
        features = super().feature_types()
        features["predictions"]["no_answer_probability"] = datasets.Value("float32")
        return features

    def prediction(self, value: Any) -> dict[str, Any]:
        row = super().prediction(value)
        return row | {"no_answer_probability": base.number(value.get("no_answer_probability"))}

    def check_pairs(self, guesses: list[Any], gold: list[Any]) -> None:
        """Raise ValueError for a question without a prediction; the order is free."""
        super().check_pairs(guesses, gold)
        missing = {row["id"] for row in gold} - {row["id"] for row in guesses}
        if missing:
            raise ValueError(f"{self.name}: question {min(missing)!r} has no prediction.")

    def _compute(
        self,
        predictions: list[dict[str, Any]],
        references: list[dict[str, Any]],
        no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:
        given = {row["id"]: row for row in predictions}
        gold = {row["id"]: row["answers"]["text"] for row in references}
        # in the order of the predictions, which decides between equal thresholds
        ids = [identity for identity in given if identity in gold]
        texts = [given[identity]["prediction_text"] for identity in ids]
        nulls = [given[identity]["no_answer_probability"] for identity in ids]
        answerable = [bool(gold[identity]) for identity in ids]
        means: dict[str, float] = {}
        best: dict[str, float] = {}
        for name, score in (("exact", exact_match), ("f1", token_f1)):
            raw = [
                best_over_answers(score, text, gold[identity])
                for text, identity in zip(texts, ids, strict=True)
            ]
            final = [
                float(not has) if null > no_answer_threshold else value
                for value, null, has in zip(raw, nulls, answerable, strict=True)
            ]
            top = find_best_threshold(raw, texts, nulls, answerable)
            best |= {f"best_{name}": top.score, f"best_{name}_thresh": top.threshold}
            for prefix, wanted in (("", None), ("HasAns_", True), ("NoAns_", False)):
                scores = [
                    value
                    for value, has in zip(final, answerable, strict=True)
                    if wanted in (None, has)
                ]
                if scores:
                    means[f"{prefix}{name}"] = 100.0 * sum(scores) / len(scores)
                    means[f"{prefix}total"] = len(scores)
        return means | best
