"""The metric modules: numbers worked out by hand, and the ways that evaluate uses them."""

import evaluate
import numpy as np
import pytest

from pipelines import metrics
from pipelines.metrics import squad_scoring


def test_accuracy_is_the_share_of_right_rows():
    found = metrics.load("accuracy").compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2])
    assert found == {"accuracy": 0.75}


def test_f1_per_class_counts_by_hand():
    # class 0: tp 1, fp 0, fn 0; class 1: tp 1, fp 0, fn 1; class 2: tp 0, fp 1, fn 0
    found = metrics.load("f1").compute(
        predictions=[0, 1, 2], references=[0, 1, 1], average=None, labels=[0, 1, 2]
    )
    np.testing.assert_allclose(found["f1"], [1, 2 / 3, 0])


def test_multilabel_micro_f1_counts_pairs():
    # true positives 2, false positives 1, false negatives 0
    found = metrics.load("f1", "multilabel").compute(
        predictions=[[0, 1], [1, 1]], references=[[0, 1], [1, 0]], average="micro"
    )
    assert found["f1"] == pytest.approx(4 / 5)


def test_confusion_matrix_has_true_classes_down():
    found = metrics.load("confusion_matrix").compute(predictions=[1, 1], references=[0, 1])
    assert found["confusion_matrix"].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("name", "value"), [("pearsonr", 0.5), ("spearmanr", 0.5), ("mse", 2 / 3)])
def test_regression_metrics(name, value):
    found = metrics.load(name).compute(predictions=[1.0, 3.0, 2.0], references=[1.0, 2.0, 3.0])
    assert found == {name: pytest.approx(value)}


def test_exact_match_compares_every_character():
    found = metrics.load("exact_match").compute(predictions=["a", "b "], references=["a", "b"])
    assert found == {"exact_match": 0.5}


def test_perplexity_weighs_rows_by_their_tokens():
    found = metrics.load("perplexity").compute(predictions=[2.0, 6.0], references=[1, 3])
    assert found == {"loss": 2.0, "perplexity": pytest.approx(np.exp(2.0))}


def gold(identity: str, *texts: str) -> dict:
    return {"id": identity, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


def test_squad_ignores_case_articles_and_punctuation():
    found = metrics.load("squad").compute(
        predictions=[
            {"id": "a", "prediction_text": "The  Norman, conquest!"},
            {"id": "b", "prediction_text": "in the 10th century"},
        ],
        references=[gold("a", "norman conquest"), gold("b", "10th and 11th", "10th century")],
    )
    # b: shares 2 words of "in 10th century" (3) with "10th century" (2): 2 * 2/3 / (5/3)
    assert found == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 0.8) / 2)}


def test_squad_scores_a_missing_prediction_as_wrong():
    found = metrics.load("squad").compute(
        predictions=[{"id": "a", "prediction_text": "x"}, {"id": "z", "prediction_text": "y"}],
        references=[gold("a", "x"), gold("b", "y")],
    )
    assert found == {"exact_match": 50.0, "f1": 50.0}


def test_squad_v2_rewards_silence_where_there_is_no_answer():
    found = metrics.load("squad_v2").compute(
        predictions=[
            {"id": "a", "prediction_text": "x", "no_answer_probability": 0.1},
            {"id": "b", "prediction_text": "x", "no_answer_probability": 0.9},
            {"id": "c", "prediction_text": "x y", "no_answer_probability": 0.8},
        ],
        references=[gold("a", "x"), gold("b"), gold("c", "x")],
        no_answer_threshold=0.5,
    )
    assert found["exact"] == found["f1"] == pytest.approx(200 / 3)
    assert (found["HasAns_f1"], found["NoAns_f1"]) == (50.0, 100.0)
    assert (found["total"], found["HasAns_total"], found["NoAns_total"]) == (3, 2, 1)
    # answering a alone gives 1 + 1 + 0; answering c as well adds 2/3
    assert found["best_f1"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)
    assert found["best_f1_thresh"] == pytest.approx(0.8)
    assert found["best_exact"] == pytest.approx(200 / 3)


def test_an_article_alone_is_a_text_for_the_threshold_as_in_the_official_script():
    best = squad_scoring.find_best_threshold([1.0], ["the"], [0.0], [False])
    assert best == (100.0, 0.0)
    best = squad_scoring.find_best_threshold([1.0, 1.0], ["the", "x"], [0.0, 1.0], [False, True])
    assert best == (50.0, 0.0)


def test_modules_combine_and_load_by_path():
    paths = [str(metrics.FOLDER / f"{name}.py") for name in ("accuracy", "f1")]
    both = evaluate.combine(paths)
    assert both.compute(predictions=[0, 1, 1], references=[0, 1, 0]) == {
        "accuracy": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }


def test_every_module_loads():
    found = sorted(path.stem for path in metrics.FOLDER.glob("*.py"))
    assert found == sorted([*metrics.NAMES, "__init__", "squad_scoring"])
    for name in metrics.NAMES:
        assert metrics.load(name).info.description


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean accuracy"):
        metrics.load("acuracy")


def test_evaluator_scores_a_checkpoint_with_our_module(checkpoint, helpdesk):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=2, pad_token_id=tokenizer.pad_token_id
    ).eval()
    texts = ["one ticket", "another one", "a third"]
    rows = Dataset.from_dict({"text": texts, "label": [0, 1, 1]})
    found = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=model,
        tokenizer=tokenizer,
        data=rows,
        metric=metrics.load("accuracy"),
        label_mapping={"LABEL_0": 0, "LABEL_1": 1},
    )
    with torch.no_grad():
        guesses = [
            int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts
        ]
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(guesses, [0, 1, 1])))


def test_rouge_is_the_f_measure_of_the_longest_common_subsequence():
    # "a b c d" and "a x c": the subsequence "a c"; precision 2/4, recall 2/3, F 4/7
    found = metrics.load("rouge").compute(
        predictions=["a b c d", "y"], references=[["q", "a x c"], ["z"]], use_aggregator=False
    )
    assert found == {"rougeL": [pytest.approx(4 / 7), 0.0]}
    found = metrics.load("rouge").compute(
        predictions=["a b c d", "y"], references=[["q", "a x c"], ["z"]]
    )
    assert found == {"rougeL": pytest.approx(2 / 7)}


def test_bleu_counts_clipped_n_grams_over_any_reference():
    # n-grams of "the cat sat on the mat" in a reference: 5/6, 3/5, 2/4, 1/3; no brevity penalty
    guess, gold = "the cat sat on the mat", "a cat sat on the mat"
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    found = metrics.load("sacrebleu").compute(predictions=[guess], references=[[gold]])
    assert found["score"] == pytest.approx(expected)
    found = metrics.load("sacrebleu").compute(
        predictions=[guess, "one two three four"],
        references=[[gold, guess], ["one two three four"]],
    )
    assert found["score"] == pytest.approx(100)
