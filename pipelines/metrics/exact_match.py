"""Share of texts that equal their reference."""

import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    """Share of texts that equal their reference, character by character."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of texts that equal their reference.",
            citation="",
            inputs_description="Texts, one for each row.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references):
        equal = [guess == gold for guess, gold in zip(predictions, references, strict=True)]
        return {"exact_match": sum(equal) / len(equal)}
