"""Exponential of the mean negative log-likelihood per predicted token."""

import math

import datasets
import evaluate


class Perplexity(evaluate.Metric):
    """Perplexity of rows whose likelihoods are known: no model is loaded here."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Exponential of the mean negative log-likelihood per predicted token.",
            citation="",
            inputs_description=(
                "predictions: summed negative log-likelihood of each row, in nats; "
                "references: number of predicted tokens of each row."
            ),
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        loss = math.fsum(predictions) / sum(references)
        return {"loss": loss, "perplexity": math.exp(loss)}
