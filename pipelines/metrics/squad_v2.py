"""Exact match and F1 of SQuAD v2, in percent, as the official script gives them."""

import datasets
import evaluate

from pipelines.metrics.squad_scoring import (
    best_over_answers,
    exact_match,
    find_best_threshold,
    token_f1,
)


class SquadV2(evaluate.Metric):
    """Exact match and F1 of SQuAD v2, in percent, also by answerable and unanswerable rows."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        answers = {"text": [text], "answer_start": [datasets.Value("int32")]}
        return evaluate.MetricInfo(
            description="Exact match and F1 of SQuAD v2, in percent.",
            citation="",
            inputs_description=(
                'predictions: {"id", "prediction_text", "no_answer_probability"}; '
                'references: {"id", "answers"}, with empty lists where there is no answer.'
            ),
            features=datasets.Features(
                {
                    "predictions": {
                        "id": text,
                        "prediction_text": text,
                        "no_answer_probability": datasets.Value("float32"),
                    },
                    "references": {"id": text, "answers": answers},
                }
            ),
        )

    def _compute(self, predictions, references, no_answer_threshold=1.0):
        given = {row["id"]: row for row in predictions}
        texts = [given[row["id"]]["prediction_text"] for row in references]
        nulls = [given[row["id"]]["no_answer_probability"] for row in references]
        gold = [row["answers"]["text"] for row in references]
        answerable = [bool(answers) for answers in gold]
        found: dict[str, float] = {}
        best: dict[str, float] = {}
        for name, score in (("exact", exact_match), ("f1", token_f1)):
            raw = [best_over_answers(score, t, a) for t, a in zip(texts, gold, strict=True)]
            final = [
                float(not has) if null > no_answer_threshold else value
                for value, null, has in zip(raw, nulls, answerable, strict=True)
            ]
            top = find_best_threshold(raw, texts, nulls, answerable)
            best |= {f"best_{name}": top.score, f"best_{name}_thresh": top.threshold}
            for prefix, wanted in (("", None), ("HasAns_", True), ("NoAns_", False)):
                kept = [
                    value
                    for value, has in zip(final, answerable, strict=True)
                    if wanted in (None, has)
                ]
                if kept:
                    found[f"{prefix}{name}"] = 100.0 * sum(kept) / len(kept)
                    found[f"{prefix}total"] = len(kept)
        return found | best
