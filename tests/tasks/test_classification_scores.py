"""Scores of classifiers, counted by hand."""

import numpy as np
import pytest
from transformers import EvalPrediction

from pipelines.data.source import DatasetSource
from pipelines.tasks.classification_scores import score_classes, score_label_sets
from pipelines.tasks.text_classification import TextClassification


def logits_of(guesses, num_labels):
    """Return logits whose largest is that of each guess."""
    return np.eye(num_labels)[guesses]


def test_scores_of_classes_are_counted_for_each_class():
    truth = np.array([0, 0, 0, 0, 1, 1, 2])
    guess = [0, 0, 0, 1, 1, 0, 0]
    score = score_classes(logits_of(guess, 4), truth, ("a", "b", "c", "d"))
    found = score.metrics
    assert found["support_per_class"] == {"a": 4, "b": 2, "c": 1, "d": 0}
    assert found["recall_per_class"] == {"a": 3 / 4, "b": 1 / 2, "c": 0, "d": 0}
    assert found["precision_per_class"] == {"a": 3 / 5, "b": 1 / 2, "c": 0, "d": 0}
    # F1 is 2 hits / (predicted + support)
    assert found["f1_per_class"] == pytest.approx({"a": 6 / 9, "b": 2 / 4, "c": 0, "d": 0})
    assert found["macro_f1"] == pytest.approx((6 / 9 + 2 / 4) / 4)
    assert found["accuracy"] == pytest.approx(4 / 7)
    # d has no rows, and no recall
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert found["confusion_matrix"][0] == [3, 1, 0, 0]


def test_a_majority_class_scores_high_accuracy_and_low_balanced_accuracy():
    truth = np.array([0] * 97 + [1] * 2 + [2])
    found = score_classes(logits_of([0] * 100, 3), truth, ("a", "b", "c")).metrics
    assert found["accuracy"] == pytest.approx(0.97)
    assert found["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["macro_f1"] == pytest.approx(2 * 97 / (100 + 97) / 3)


def test_scores_of_label_sets_are_counted_for_each_label():
    truth = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]], dtype=np.float32)
    guess = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    labels = ("a", "b", "c", "d")
    found = score_label_sets(2.0 * guess - 1, truth, labels, np.full(4, 0.5)).metrics
    assert found["support_per_class"] == {"a": 3, "b": 2, "c": 1, "d": 0}
    assert found["precision_per_class"] == pytest.approx({"a": 2 / 3, "b": 0, "c": 0, "d": 0})
    assert found["recall_per_class"] == pytest.approx({"a": 2 / 3, "b": 0, "c": 0, "d": 0})
    assert found["f1_per_class"] == pytest.approx({"a": 4 / 6, "b": 0, "c": 0, "d": 0})
    assert found["macro_f1"] == pytest.approx(4 / 6 / 4)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (4 + 6))  # 4 predicted, 6 true
    assert all(type(count) is int for count in found["support_per_class"].values())


@pytest.mark.parametrize(
    ("problem_type", "logits", "truth"),
    [
        ("single_label_classification", [[1.0, 0.0], [0.0, 2.0]], [0, 1]),
        ("multi_label_classification", [[1.0, -1.0], [-1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]),
        ("regression", [[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0]),
    ],
)
def test_the_metrics_to_choose_by_are_in_the_score(problem_type, logits, truth):
    task = TextClassification(dataset=DatasetSource(path="nowhere"), problem_type=problem_type)
    score = task.score(EvalPrediction(np.array(logits), np.array(truth)), None, ("a", "b"))
    assert next(iter(task.metrics)) == score.primary
    assert task.metrics.keys() <= score.metrics.keys()
