"""Mean squared error."""

from typing import Any

from sklearn.metrics import mean_squared_error

from pipelines.metrics import base


class MeanSquaredError(base.NumberMetric):
    """Mean squared error."""

    def _compute(
        self, predictions: Any, references: Any, sample_weight: Any = None
    ) -> dict[str, float]:
        score = mean_squared_error(references, predictions, sample_weight=sample_weight)
        return {"mse": float(score)}
