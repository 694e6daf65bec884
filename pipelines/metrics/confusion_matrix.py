"""Rows by true class (down) and predicted class (across)."""

import datasets
import evaluate
from sklearn import metrics


class ConfusionMatrix(evaluate.Metric):
    """Rows by true class (down) and predicted class (across)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Rows by true class (down) and predicted class (across).",
            citation="",
            inputs_description="Class ids, one for each row.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, labels=None):
        return {
            "confusion_matrix": metrics.confusion_matrix(references, predictions, labels=labels)
        }
