"""Rows by true class (down) and predicted class (across)."""

from typing import Any

from sklearn import metrics

from pipelines.metrics import base


class ConfusionMatrix(base.LabelMetric):
    """Rows by true class (down) and predicted class (across)."""

    def _compute(
        self,
        predictions: Any,
        references: Any,
        labels: Any = None,
        sample_weight: Any = None,
        normalize: str | None = None,
    ) -> dict[str, Any]:
        matrix = metrics.confusion_matrix(
            references, predictions, labels=labels, sample_weight=sample_weight, normalize=normalize
        )
        return {"confusion_matrix": matrix}
