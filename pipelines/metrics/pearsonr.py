"""Pearson's correlation."""

from scipy.stats import pearsonr

from pipelines.metrics import base


class Pearson(base.NumberMetric):
    """Pearson's correlation; NaN where one side is constant."""

    def _compute(self, predictions, references):
        return {"pearsonr": float(pearsonr(references, predictions).statistic)}
