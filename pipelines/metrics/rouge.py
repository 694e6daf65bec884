"""ROUGE-L of generated texts, by the rouge-score package."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from rouge_score import rouge_scorer

from pipelines.metrics import base, words


class Rouge(base.TextMetric):
    """F-measure of the longest common subsequence of words with the best reference.

    `tokenizer` splits a text into words, by default in any script; on ASCII text it equals
    rouge_score's own. `use_aggregator=False` returns a list with one value for each text.
    """

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        use_aggregator: bool = True,
        tokenizer: Callable[[str], list[str]] = words.split,
    ) -> dict[str, Any]:
        split = SimpleNamespace(tokenize=tokenizer)
        scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=split)
        values = [
            scorer.score_multi(gold, guess)["rougeL"].fmeasure
            for guess, gold in zip(predictions, references, strict=True)
        ]
        return {"rougeL": sum(values) / len(values) if use_aggregator else values}
