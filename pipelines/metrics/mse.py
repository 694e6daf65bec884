"""Mean squared error."""

import datasets
import evaluate
from sklearn.metrics import mean_squared_error


class MeanSquaredError(evaluate.Metric):
    """Mean squared error."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean squared error.",
            citation="",
            inputs_description="Numbers, one for each row.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"mse": float(mean_squared_error(references, predictions))}
