"""Share of rows whose prediction is right."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score


class Accuracy(evaluate.Metric):
    """Share of rows whose prediction is right; every label of the row in config `multilabel`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        kind = datasets.Sequence(ids) if self.config_name == "multilabel" else ids
        return evaluate.MetricInfo(
            description="Share of rows whose prediction is right.",
            citation="",
            inputs_description="Class ids, or for config `multilabel` a 0/1 list for each row.",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions, references, normalize=True, sample_weight=None):
        score = accuracy_score(
            references, predictions, normalize=normalize, sample_weight=sample_weight
        )
        return {"accuracy": float(score)}
