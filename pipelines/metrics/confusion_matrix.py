"""Rows by true class (down) and predicted class (across)."""

from sklearn import metrics

from pipelines.metrics import base


class ConfusionMatrix(base.LabelMetric):
    """Rows by true class (down) and predicted class (across)."""

    def _compute(self, predictions, references, labels=None, sample_weight=None, normalize=None):
        matrix = metrics.confusion_matrix(
            references, predictions, labels=labels, sample_weight=sample_weight, normalize=normalize
        )
        return {"confusion_matrix": matrix}
