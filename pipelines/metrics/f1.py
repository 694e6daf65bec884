"""Harmonic mean of precision and recall."""

from sklearn.metrics import f1_score

from pipelines.metrics import base


class F1(base.LabelMetric):
    """Harmonic mean of precision and recall, with scikit-learn's options.

    An array with `average=None`: a value for each label.
    """

    def _compute(
        self,
        predictions,
        references,
        labels=None,
        pos_label=1,
        average="binary",
        sample_weight=None,
    ):
        score = f1_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label,
            average=average,
            sample_weight=sample_weight,
            zero_division=0.0,
        )
        return {"f1": score if average is None else float(score)}
