"""Harmonic mean of precision and recall."""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    """Harmonic mean of precision and recall, with scikit-learn's options."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        kind = datasets.Sequence(ids) if self.config_name == "multilabel" else ids
        return evaluate.MetricInfo(
            description="Harmonic mean of precision and recall.",
            citation="",
            inputs_description="Class ids, or for config `multilabel` a 0/1 list for each row.",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

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
        return {"f1": float(score) if getattr(score, "size", 1) == 1 else score}
