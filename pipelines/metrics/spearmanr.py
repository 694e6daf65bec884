"""Spearman's rank correlation."""

from typing import Any

from scipy.stats import spearmanr

from pipelines.metrics import base


class Spearman(base.NumberMetric):
    """Spearman's rank correlation; NaN if either column is constant."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"spearmanr": float(spearmanr(references, predictions).statistic)}
