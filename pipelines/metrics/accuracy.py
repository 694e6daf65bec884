"""Fraction of rows whose prediction is right."""

from typing import Any

from sklearn.metrics import accuracy_score

from pipelines.metrics import base


class Accuracy(base.LabelMetric):
    """Fraction of right predictions; in config `multilabel`, of right lists."""

    def _compute(
        self,
        predictions: Any,
        references: Any,
        normalize: bool = True,
        sample_weight: Any = None,
    ) -> dict[str, float]:
        score = accuracy_score(
            references, predictions, normalize=normalize, sample_weight=sample_weight
        )
        return {"accuracy": float(score)}
