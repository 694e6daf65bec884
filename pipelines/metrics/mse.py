"""Mean squared error."""

from sklearn.metrics import mean_squared_error

from pipelines.metrics import base


class MeanSquaredError(base.NumberMetric):
    """Mean squared error."""

    def _compute(self, predictions, references, sample_weight=None):
        score = mean_squared_error(references, predictions, sample_weight=sample_weight)
        return {"mse": float(score)}
