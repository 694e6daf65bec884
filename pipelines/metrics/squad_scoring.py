"""Exact match and F1 of answers, by the rules of the official SQuAD v1 and v2 scripts.

Source of the rules: https://rajpurkar.github.io/SQuAD-explorer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Threshold(NamedTuple):
    """The best score in percent that one null threshold gives, and that threshold."""

    score: float
    threshold: float


def normalize_answer(text: str) -> str:
    """Lower the case, drop ASCII punctuation and the articles, and join words by one space."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if both are the same after normalisation."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Return the F1 of shared words; without a word on one side, 1.0 if both have none.

    That is the rule of v2. In v1 two answers without a word score 0.0, see `squad`.
    """
    guess, gold = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not guess or not gold:
        return float(guess == gold)
    return word_f1(guess, gold)


def word_f1(guess: Sequence[str], gold: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the shared words."""
    shared = sum((Counter(guess) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(guess), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def best_over_answers(
    score: Callable[[str, str], float], prediction: str, answers: Sequence[str]
) -> float:
    """Return the best score over the gold answers; no answer, or only empty ones, means ""."""
    gold = [answer for answer in answers if normalize_answer(answer)]
    return max(score(prediction, answer) for answer in (gold or [""]))


def find_best_threshold(
    scores: Sequence[float],
    predictions: Sequence[str],
    no_answer_probabilities: Sequence[float],
    answerable: Sequence[bool],
) -> Threshold:
    """Return the null threshold that gives the best mean score, by the official v2 rule.

    A question counts as unanswered above the threshold, where an unanswerable one scores 1.
    `scores` hold what each prediction is worth when it is given.
    """
    current = best = float(len(answerable) - sum(answerable))
    threshold = 0.0
    for i in sorted(range(len(scores)), key=lambda i: no_answer_probabilities[i]):
        current += scores[i] if answerable[i] else -float(bool(predictions[i]))
        if current > best:
            best, threshold = current, no_answer_probabilities[i]
    return Threshold(100.0 * best / len(scores), threshold)
