"""Exact match and F1 of answers, by the official SQuAD v1 and v2 rules.

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
    """Return a text in lower case without punctuation and articles.

    Words are joined by one space.
    """
    words = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if both are equal after normalisation, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Return the F1 of shared words; if either has no word, 1.0 if both have none.

    This is the rule of v2. In v1 two answers without a word score 0.0, see `squad`.
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
    """Return the best score over the gold answers.

    If all of them are empty, the gold answer is "".
    """
    gold = [answer for answer in answers if normalize_answer(answer)]
    return max(score(prediction, answer) for answer in (gold or [""]))


def best_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best F1 over the gold answers, by the rule of v1.

    A prediction or an answer without a word scores 0.0.
    """
    guess = normalize_answer(prediction).split()
    return max(word_f1(guess, normalize_answer(answer).split()) for answer in answers)


def find_best_threshold(
    scores: Sequence[float],
    predictions: Sequence[str],
    no_answer_probabilities: Sequence[float],
    answerable: Sequence[bool],
) -> Threshold:
    """Return the null threshold with the best mean score, by the official v2 rule.

    Above the threshold a question counts as unanswered, which scores 1 if it is unanswerable.
    `scores` are those of the predictions if they are given.
    """
    current = best = float(len(answerable) - sum(answerable))
    threshold = 0.0
    for i in sorted(range(len(scores)), key=lambda i: no_answer_probabilities[i]):
        current += scores[i] if answerable[i] else -float(bool(predictions[i]))
        if current > best:
            best, threshold = current, no_answer_probabilities[i]
    return Threshold(100.0 * best / len(scores), threshold)
