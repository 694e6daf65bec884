"""ROUGE-L of generated texts, by the rouge-score package."""

import datasets
import evaluate
from rouge_score import rouge_scorer


class Rouge(evaluate.Metric):
    """F-measure of the longest common subsequence of words, the best over the references."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="F-measure of the longest common subsequence, the best over references.",
            citation="",
            inputs_description=(
                "predictions: texts; references: for each a list of texts; "
                "use_aggregator=False gives a list, one value for each text."
            ),
            features=datasets.Features({"predictions": text, "references": [text]}),
        )

    def _compute(self, predictions, references, use_aggregator=True):
        scorer = rouge_scorer.RougeScorer(["rougeL"])
        values = [
            scorer.score_multi(gold, guess)["rougeL"].fmeasure
            for guess, gold in zip(predictions, references, strict=True)
        ]
        return {"rougeL": sum(values) / len(values) if use_aggregator else values}
