"""Pearson's correlation."""

from typing import Any

from scipy.stats import pearsonr

from pipelines.metrics import base


class Pearson(base.NumberMetric):
    """Pearson's correlation; NaN if either column is constant."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"pearsonr": float(pearsonr(references, predictions).statistic)}
