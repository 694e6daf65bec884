"""Fraction of rows whose prediction is right."""

from sklearn.metrics import accuracy_score

from pipelines.metrics import base


class Accuracy(base.LabelMetric):
    """Fraction of rows whose prediction is right: all its labels, in config `multilabel`."""

    def _compute(self, predictions, references, normalize=True, sample_weight=None):
        score = accuracy_score(
            references, predictions, normalize=normalize, sample_weight=sample_weight
        )
        return {"accuracy": float(score)}
