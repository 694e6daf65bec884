"""The results of single rows, from which the primary metric follows."""

import math

import numpy as np
import pytest
from transformers import EvalPrediction

from pipelines.data.load import load_splits
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.generation import Continuation
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

ANYWHERE = DatasetSource(path="nowhere")


def encoded(task, tokenizer, rows, labels=()):
    """Return the features of rows that were read from lines 1, 2, ... of a file."""
    examples = Examples(rows, origin="rows.jsonl", lines=list(range(1, len(rows) + 1)))
    return task.features(examples, tokenizer, labels, training=False)


def metric_of(task, results):
    """Return the primary metric that follows from the values of rows."""
    means = np.array([result.values for result in results]).mean(0)
    return float(task.statistic(means[None])[0])


def test_the_value_of_a_classified_row_is_whether_its_label_is_right(tokenizer):
    task = TextClassification(dataset=ANYWHERE)
    rows = [{"text": t, "label": n} for t, n in (("one", "a"), ("two", "b"), ("three", "b"))]
    held_out = encoded(task, tokenizer, rows, ("a", "b"))
    logits = np.array([[2.0, 1.0], [3.0, 1.0], [0.0, 5.0]])  # a, a, b
    prediction = EvalPrediction(logits, np.array([0, 1, 1]))
    results = task.row_results(prediction, held_out, ("a", "b"))
    assert [result.row for result in results] == [f"rows.jsonl:{line}" for line in (1, 2, 3)]
    assert [result.prediction["label"] for result in results] == ["a", "a", "b"]
    assert [result.reference for result in results] == ["a", "b", "b"]
    assert [result.values for result in results] == [[1.0], [0.0], [1.0]]
    assert metric_of(task, results) == pytest.approx(2 / 3, abs=1e-12)


def test_the_values_of_several_labels_are_counts_of_micro_f1(tokenizer):
    task = TextClassification(dataset=ANYWHERE, problem_type="multi_label_classification")
    rows = [{"text": "one", "label": ["a", "b"]}, {"text": "two", "label": ["c"]}]
    labels = ("a", "b", "c")
    held_out = encoded(task, tokenizer, rows, labels)
    logits = np.array([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])  # {a, c} and {}
    prediction = EvalPrediction(logits, np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    results = task.row_results(prediction, held_out, labels)
    assert [result.reference for result in results] == [["a", "b"], ["c"]]
    assert [result.values for result in results] == [[2.0, 4.0], [0.0, 1.0]]
    assert metric_of(task, results) == pytest.approx(2 / 5, abs=1e-12)
    assert task.score(prediction, held_out, labels).metrics["micro_f1"] == pytest.approx(2 / 5)
    # Probabilities are 0.73 and 0.27: with these thresholds the first row has b alone
    strict = task.tuned({"thresholds": {"a": 0.8, "b": 0.2, "c": 0.8}})
    results = strict.row_results(prediction, held_out, labels)
    assert [result.prediction["labels"] for result in results] == [["b"], ["b"]]
    assert [result.values for result in results] == [[2.0, 3.0], [0.0, 2.0]]
    score = strict.score(prediction, held_out, labels)
    assert metric_of(strict, results) == pytest.approx(score.metrics["micro_f1"], abs=1e-12)


@pytest.mark.parametrize(
    ("guess", "correlation"),
    [
        # The targets 1, 2, 4 are -4/3, -1/3, 5/3 from their mean, 42/9 as the sum of squares
        ([0.0, 1.0, 2.0], 3 / math.sqrt(2 * 42 / 9)),
        # Rounding errors of float32 are no correlation
        ([0.1, 0.1 + 1e-9, 0.1 + 2e-9], 0.0),
    ],
)
def test_the_values_of_a_regression_are_moments(tokenizer, guess, correlation):
    task = TextClassification(dataset=ANYWHERE, problem_type="regression")
    rows = [{"text": "one", "label": 1.0}, {"text": "two", "label": 2.0}]
    held_out = encoded(task, tokenizer, [*rows, {"text": "three", "label": 4.0}])
    prediction = EvalPrediction(np.array(guess)[:, None], np.array([1.0, 2.0, 4.0]))
    results = task.row_results(prediction, held_out, ())
    assert [result.reference for result in results] == [1.0, 2.0, 4.0]
    assert metric_of(task, results) == pytest.approx(correlation, abs=1e-9)
    score = task.score(prediction, held_out, ())
    assert score.metrics["pearsonr"] == pytest.approx(correlation, abs=1e-9)


def test_the_values_of_a_block_are_its_loss_and_its_tokens(tokenizer):
    task = CausalLM(dataset=ANYWHERE, block_size=8)
    held_out = encoded(task, tokenizer, [{"text": "one two three four five six seven"}])
    losses = np.stack([np.arange(held_out.num_rows) + 1.0, np.full(held_out.num_rows, 7.0)], 1)
    prediction = EvalPrediction(losses, losses)
    results = task.row_results(prediction, held_out, ())
    assert results[1].row == "block 1"
    assert results[1].values == [2.0, 7.0]
    assert results[1].prediction == {"loss": 2 / 7}
    assert results[1].reference == {"tokens": 7}
    count = held_out.num_rows
    perplexity = math.exp(count * (count + 1) / 2 / (7 * count))
    assert metric_of(task, results) == pytest.approx(perplexity, rel=1e-12)
    losses[0] = 0, 0  # a block without a token to predict
    assert task.row_results(prediction, held_out, ())[0].prediction == {"loss": None}


@pytest.mark.parametrize("version_2", [False, True])
def test_the_value_of_an_answer_is_its_f1(tokenizer, version_2):
    task = QuestionAnswering(
        dataset=ANYWHERE, version_2_with_negative=version_2, max_length=32, stride=4
    )
    context = "the lamp is red and the desk is blue " * 4  # several windows
    rows = [
        {
            "question": "What is red?",
            "context": context,
            "answers": {"text": ["the lamp", "lamp"], "answer_start": [0, 4]},
        },
        {
            "question": "And what is blue?",
            "context": "the desk",
            "answers": {"text": ["the desk"], "answer_start": [0]},
        },
    ]
    if version_2:
        rows.append(rows[0] | {"answers": {"text": [], "answer_start": []}})
    held_out = encoded(task, tokenizer, rows)
    length = max(len(row["input_ids"]) for row in held_out.dataset)
    for seed in range(5):
        logits = np.random.default_rng(seed).normal(size=(len(held_out.dataset), length, 2))
        targets = np.array([row["labels"] for row in held_out.dataset])
        prediction = EvalPrediction(logits, targets)
        results = task.row_results(prediction, held_out, ())
        assert [r.row for r in results] == [f"rows.jsonl:{i + 1}" for i in range(len(rows))]
        assert results[0].reference == ["the lamp", "lamp"]
        score = task.score(prediction, held_out, ())
        assert metric_of(task, results) == pytest.approx(score.metrics["f1"], abs=1e-9)
        assert task.predictions(logits, held_out, ()) == [r.prediction for r in results]


def test_an_answer_without_a_word_scores_as_in_its_version_of_squad():
    from pipelines.tasks.spans import Question

    questions = [Question("the", {"text": ["the"], "answer_start": [0]})]
    v1, v2 = (
        QuestionAnswering(dataset=ANYWHERE, version_2_with_negative=each) for each in (False, True)
    )
    assert v1.f1_of_answers(["the"], questions) == [[0.0]]
    assert v2.f1_of_answers(["the"], questions) == [[1.0]]


def test_the_value_of_a_reply_is_its_rouge_and_its_row_the_first_of_its_prompt(tokenizer):
    task = InstructionTuning(dataset=ANYWHERE)
    rows = [
        {"prompt": "Say", "completion": "one two three four"},
        {"prompt": "Say", "completion": "one"},
        {"prompt": "Tell", "completion": "five six"},
    ]
    held_out = encoded(task, tokenizer, rows)
    written = [Continuation(" one two", ended=True), Continuation(" seven", ended=False)]
    results = task.reply_results(written, held_out)
    assert [result.row for result in results] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert results[0].prediction == {"text": "one two", "ended": True}
    assert results[0].reference == ["one two three four", "one"]
    # Against either reference: 2 of 2 and 2 of 4 words, or 1 of 2 and 1 of 1; both have F1 2/3
    assert results[0].values == pytest.approx([2 / 3], abs=1e-12)
    assert metric_of(task, results) == pytest.approx(1 / 3, abs=1e-12)
    score = task.score_replies(written, held_out)
    assert score.metrics["rougeL"] == pytest.approx(1 / 3, abs=1e-9)


def test_the_value_of_a_pair_is_whether_the_chosen_reply_has_the_higher_reward(tokenizer):
    task = PreferenceTuning(dataset=ANYWHERE, beta=0.5)
    rows = [{"prompt": f"Say {n}", "chosen": "one", "rejected": "two"} for n in range(2)]
    held_out = encoded(task, tokenizer, rows)
    log_probs = np.array([[-1.0, -2.0, -3.0, -3.0], [-4.0, -2.0, -3.0, -3.0]])
    prediction = EvalPrediction(log_probs, log_probs)
    results = task.row_results(prediction, held_out, ())
    # Rewards are 0.5 * (-1 + 3) and 0.5 * (-2 + 3), then 0.5 * (-4 + 3) and 0.5 * (-2 + 3)
    assert results[0].prediction == {
        "chosen_reward": 1.0,
        "rejected_reward": 0.5,
        "reward_margin": 0.5,
    }
    assert results[1].prediction["reward_margin"] == -1.0
    assert [result.values for result in results] == [[1.0], [0.0]]
    assert metric_of(task, results) == 0.5
    assert task.score(prediction, held_out, ()).metrics["reward_accuracy"] == 0.5


def test_the_metric_of_a_whole_split_follows_from_the_values(tasks, tokenizer):
    for name in ("text_classification", "question_answering"):
        task = tasks[name]
        splits = load_splits(task.dataset)
        labels = task.labels(splits.train)
        held_out = task.features(splits.held_out, tokenizer, labels, training=False)
        truth = np.array([row["labels"] for row in held_out.dataset])
        length = max(len(row["input_ids"]) for row in held_out.dataset)
        shape = (len(truth), len(labels)) if labels else (len(truth), length, 2)
        logits = np.random.default_rng(0).normal(size=shape)
        prediction = EvalPrediction(logits, truth)
        score = task.score(prediction, held_out, labels)
        results = task.row_results(prediction, held_out, labels)
        assert len(results) == score.num_rows
        assert metric_of(task, results) == pytest.approx(score.metrics[score.primary], abs=1e-9)
