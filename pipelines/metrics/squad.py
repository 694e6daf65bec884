"""Exact match and F1 of SQuAD v1, in percent, as the official script gives them."""

import datasets
import evaluate

from pipelines.metrics.squad_scoring import exact_match, normalize_answer, word_f1


class Squad(evaluate.Metric):
    """Exact match and F1 of SQuAD v1, in percent."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        answers = {"text": [text], "answer_start": [datasets.Value("int32")]}
        return evaluate.MetricInfo(
            description="Exact match and F1 of SQuAD v1, in percent.",
            citation="",
            inputs_description=(
                'predictions: {"id", "prediction_text"}; references: {"id", "answers"}.'
            ),
            features=datasets.Features(
                {
                    "predictions": {"id": text, "prediction_text": text},
                    "references": {"id": text, "answers": answers},
                }
            ),
        )

    def _compute(self, predictions, references):
        given = {row["id"]: row["prediction_text"] for row in predictions}
        exact, f1 = 0.0, 0.0
        for row in references:
            guess = given.get(row["id"])
            if guess is None:
                continue  # an unanswered question scores 0, as in the official script
            gold = row["answers"]["text"]
            words = normalize_answer(guess).split()
            exact += max(exact_match(guess, answer) for answer in gold)
            f1 += max(word_f1(words, normalize_answer(answer).split()) for answer in gold)
        return {
            "exact_match": 100.0 * exact / len(references),
            "f1": 100.0 * f1 / len(references),
        }
