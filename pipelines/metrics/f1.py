"""Harmonic mean of precision and recall."""

from typing import Any

from sklearn.metrics import f1_score

from pipelines.metrics import base


class F1(base.LabelMetric):
    """Harmonic mean of precision and recall, with scikit-learn's options.

    With `average=None`, an array with a value for each label.
    """

    def _compute(
        self,
        predictions: Any,
        references: Any,
        labels: Any = None,
        pos_label: int | str = 1,
        average: str | None = "binary",
        sample_weight: Any = None,
    ) -> dict[str, Any]:
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
