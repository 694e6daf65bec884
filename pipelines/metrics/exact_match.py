"""Fraction of texts that equal their reference."""

from typing import Any

import datasets

from pipelines.metrics import base


class ExactMatch(base.Metric):
    """Fraction of texts that equal their reference, character by character."""

    inputs = "Texts, one for each row."

    def feature_types(self) -> datasets.Features:
        value = datasets.Value("string")
        return datasets.Features({"predictions": value, "references": value})

    def prediction(self, value: Any) -> str:
        return base.text(value)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        equal = [guess == gold for guess, gold in zip(predictions, references, strict=True)]
        return {"exact_match": sum(equal) / len(equal)}
