"""Exponential of the mean negative log-likelihood per predicted token."""

import math
from typing import Any

import datasets

from pipelines.metrics import base


class Perplexity(base.Metric):
    """Perplexity from the likelihoods of rows; no model is loaded."""

    inputs = (
        "predictions: summed negative log-likelihood of each row, in nats; references: number of "
        "predicted tokens of each row."
    )

    def feature_types(self) -> datasets.Features:
        return datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        )

    def prediction(self, value: Any) -> float:
        return base.number(value)

    def reference(self, value: Any) -> int:
        count = base.whole(value)
        if count < 0:
            raise ValueError(f"{count} is not a number of tokens.")
        return count

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        num_tokens = sum(references)
        if not num_tokens:
            raise ValueError("perplexity: the rows have no predicted tokens.")
        loss = math.fsum(predictions) / num_tokens
        try:
            return {"loss": loss, "perplexity": math.exp(loss)}
        except OverflowError:
            return {"loss": loss, "perplexity": math.inf}
