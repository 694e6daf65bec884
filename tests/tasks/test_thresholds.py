"""The threshold of a label: chosen by F1, kept with the result, and used by all that predicts."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from pipelines.data.load import load_splits
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.data.splits import check_splits
from pipelines.errors import RecipeError
from pipelines.evaluation.evaluate import evaluate
from pipelines.hub.load import load_result
from pipelines.inference.merge import merge
from pipelines.inference.predict import predict_examples
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.recipe_cli import parse
from pipelines.results.check import check_sidecar
from pipelines.results.files import write_manifest
from pipelines.results.save import FinishedRun, save
from pipelines.tasks.text_classification import TextClassification
from pipelines.tasks.thresholds import best_threshold, sigmoid
from pipelines.training.build import build_trainer
from pipelines.training.identity import identity_of
from pipelines.training.trainer import score_of
from pipelines.training.tuning import tune

ANYWHERE = DatasetSource(path="nowhere")


def several(dataset=ANYWHERE, **options):
    return TextClassification(dataset=dataset, problem_type="multi_label_classification", **options)


def f1(probability, truth, threshold):
    """Count F1 row by row."""
    pairs = [(p > threshold, t == 1) for p, t in zip(probability, truth, strict=True)]
    hits = sum(guess and true for guess, true in pairs)
    return 2 * hits / max(sum(guess for guess, _ in pairs) + sum(true for _, true in pairs), 1)


@pytest.mark.parametrize(
    ("probability", "truth", "expected"),
    [
        # above 0.25: both positives and no negative
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 0.25),
        # 0.5 divides them as well as any other
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),
        ([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], 0.5),
        # 3 of 4 predicted, 2 hits: F1 4/5; the highest alone: 2/3; all: 4/6
        ([0.1, 0.2, 0.6, 0.9], [0, 1, 0, 1], 0.15),
        # 0.15 has 2 hits of 4, 0.7 has 1 of 1: both F1 2/3, and 0.5 has 2/4; 0.7 is nearer to 0.5
        ([0.3, 0.4, 0.65, 0.75], [1, 0, 0, 1], 0.7),
        # one positive below all negatives: all are predicted, F1 2/4
        ([0.2, 0.3, 0.4], [1, 0, 0], 0.1),
        # equal probabilities cannot be told apart
        ([0.3, 0.3, 0.3, 0.1], [1, 0, 1, 0], 0.2),
        # no positive: F1 is not defined; all positive: 0.5 unless it loses one
        ([0.2, 0.9], [0, 0], 0.5),
        ([0.6, 0.9], [1, 1], 0.5),
        ([0.4, 0.9], [1, 1], 0.2),
        # 0 is never above a threshold
        ([0.0, 0.9], [1, 1], 0.5),
        ([0.0, 0.0], [1, 0], 0.5),
        ([1.0, 1.0], [1, 0], 0.5),
    ],
)
def test_the_threshold_of_a_label_has_its_highest_f1(probability, truth, expected):
    found = best_threshold(np.array(probability), np.array(truth))
    assert found == pytest.approx(expected)
    others = [*probability, *np.linspace(0.001, 0.999, 999)]
    best = max(f1(probability, truth, each) for each in others)
    assert f1(probability, truth, found) == best or not any(truth)
    order = np.random.default_rng(0).permutation(len(truth))
    assert best_threshold(np.array(probability)[order], np.array(truth)[order]) == found


def test_random_rows_have_no_better_threshold():
    generator = np.random.default_rng(0)
    for _ in range(50):
        probability = generator.random(30).round(2)
        truth = (generator.random(30) < probability).astype(int)
        if truth.any():
            found = f1(probability, truth, best_threshold(probability, truth))
            assert found == max(f1(probability, truth, each / 1000) for each in range(1, 1000))


def test_neighbouring_numbers_are_divided():
    low = 0.75
    high = float(np.nextafter(low, 1))
    assert f1([low, high], [0, 1], best_threshold(np.array([low, high]), np.array([0, 1]))) == 1


LABELS = ("a", "b")
LOGITS = np.array([[-2.0, 3.0], [-1.0, 1.0], [0.5, 2.0], [-3.0, 0.5]])
TRUTH = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])


def test_a_task_that_tunes_returns_a_threshold_for_each_label():
    task = several(tune_thresholds=True)
    assert task.tunes == ("thresholds",)
    found = task.tune(EvalPrediction(LOGITS, TRUTH), LABELS)
    # a: positives -1 and 0.5 above -2; b: positives 3 and 2 above 1
    a, b = (sigmoid(-2) + sigmoid(-1)) / 2, (sigmoid(1) + sigmoid(2)) / 2
    assert found == {"thresholds": pytest.approx({"a": a, "b": b})}
    json.dumps(found)
    tuned = task.tuned(found)
    assert tuned == replace(task, thresholds=found["thresholds"], tune_thresholds=False)
    assert tuned.tunes == ()


def test_a_task_that_does_not_tune_stays_as_it_is(tasks):
    for task in (*tasks.values(), several(), several(thresholds={"a": 0.3, "b": 0.5})):
        assert task.tunes == ()
        assert task.tune(EvalPrediction(LOGITS, TRUTH), LABELS) == {}
        assert task.tuned({}) == task


def test_the_score_and_the_predictions_use_the_thresholds():
    plain, tuned = several(), several(thresholds={"a": 0.2, "b": 0.8})
    prediction = EvalPrediction(LOGITS, TRUTH)
    # over 0.5: a of row 2, b of all; F1 a 2/3 (1 hit, 1 predicted, 2 true), b 4/6
    score = plain.score(prediction, None, LABELS).metrics
    assert score["f1_per_class"] == pytest.approx({"a": 2 / 3, "b": 4 / 6})
    # over 0.2, a logit of -1.39: a of rows 1, 2; over 0.8, 1.39: b of rows 0 and 2
    score = tuned.score(prediction, None, LABELS).metrics
    assert score["f1_per_class"] == {"a": 1, "b": 1}
    assert score["micro_f1"] == 1
    rows = tuned.predictions(LOGITS, None, LABELS)
    assert [row["labels"] for row in rows] == [["b"], ["a"], ["a", "b"], []]
    assert rows[0]["scores"]["a"] == pytest.approx(1 / (1 + math.exp(2)))
    before = [row["labels"] for row in plain.predictions(LOGITS, None, LABELS)]
    assert before == [["b"], ["b"], ["a", "b"], ["b"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint, tokenizer):
    """A trained and saved adapter whose thresholds are tuned, with the metrics of its run.

    Each row has the label "lamp" if it names one, and few have "broken".
    """
    folder = tmp_path_factory.mktemp("tuned")
    rows = [
        {
            "text": f"{'lamp' if i % 2 else 'desk'} {'is broken' if i % 8 == 3 else 'no'} {i}",
            "label": ["lamp"] * (i % 2) + ["broken"] * (i % 8 == 3),
        }
        for i in range(80)
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    source = DatasetSource(path=str(file), eval_fraction=0.4)
    recipe = Recipe(
        name="tuned",
        task=several(source, tune_thresholds=True, max_length=32),
        model=Model(name_or_path=str(checkpoint)),
        lora=Lora(r=2),
        train=Train(max_steps=6, learning_rate=1e-2, global_batch_size=8, save_steps=None),
        output_dir=str(folder / "run"),
    )
    raw = load_splits(source)
    recipe = replace(recipe, task=recipe.task.resolved(raw.train))
    splits, labels = check_splits(recipe.task, raw)
    torch.manual_seed(0)
    trainer = build_trainer(
        recipe,
        build_model(recipe, tokenizer, labels),
        tokenizer,
        train=recipe.task.features(splits.train, tokenizer, labels, training=True),
        held_out=recipe.task.features(splits.held_out, tokenizer, labels, training=False),
        labels=labels,
    )
    trainer.train()
    before = score_of(trainer.evaluate())
    tuned = tune(trainer, recipe.task, labels)
    trainer.compute_metrics = replace(trainer.compute_metrics, task=recipe.task.tuned(tuned))
    metrics = score_of(trainer.evaluate())
    identity = identity_of(recipe, splits, 1) | {"run": "tuned", "changed": []}
    run = FinishedRun(
        recipe=recipe,
        tokenizer=tokenizer,
        labels=labels,
        metrics=metrics,
        splits=splits,
        identity=identity,
        tuned=tuned,
    )
    return recipe, before, metrics, tuned, save(trainer, run)


def test_tuned_thresholds_have_no_lower_f1_for_any_label(finished):
    _, before, after, tuned, _ = finished
    assert tuned["thresholds"].keys() == {"broken", "lamp"}
    assert any(each != 0.5 for each in tuned["thresholds"].values())
    for label, score in after["f1_per_class"].items():
        assert score >= before["f1_per_class"][label]
    assert after["macro_f1"] > before["macro_f1"]
    assert after["loss"] == before["loss"]


def test_a_loaded_result_predicts_by_the_thresholds_of_task_json(finished):
    recipe, _, _, tuned, folder = finished
    loaded = load_result(folder)
    assert json.loads((folder / "task.json").read_text())["thresholds"] == tuned["thresholds"]
    assert Recipe.from_file(folder / "recipe.json") == recipe
    assert loaded.recipe.task == recipe.task.tuned(tuned)
    rows = Examples([{"text": f"lamp is broken {i}"} for i in range(9)], "rows")
    for row in predict_examples(loaded, rows):
        expected = [n for n in loaded.labels if row["scores"][n] > tuned["thresholds"][n]]
        assert row["labels"] == expected


def test_a_result_with_thresholds_scores_the_same_again_also_merged(finished, tmp_path):
    _, _, metrics, tuned, folder = finished
    again = evaluate(folder)
    assert again.equal
    assert again.metrics["f1_per_class"] == metrics["f1_per_class"]
    merge(folder, tmp_path / "merged")
    whole = load_result(tmp_path / "merged")
    assert whole.sidecar["thresholds"] == tuned["thresholds"]
    assert whole.metrics["f1_per_class"] == metrics["f1_per_class"]


def test_other_thresholds_are_another_result(finished):
    _, _, _, tuned, folder = finished
    loaded = load_result(folder)
    thresholds = tuned["thresholds"] | {"lamp": 0.123}
    assert replace(loaded, sidecar=loaded.sidecar | {"thresholds": thresholds}).sha256 != (
        loaded.sha256
    )


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        (None, "task.json: has no thresholds, which its recipe decides."),
        ({"lamp": 0.5}, "task.json: thresholds: are of other labels."),
        ({"lamp": 0.5, "broken": 1.5}, "the threshold of 'broken' is 1.5; it must be between"),
        ({"lamp": 0.5, "broken": "x"}, "thresholds"),
    ],
)
def test_a_result_with_wrong_thresholds_is_refused(finished, thresholds, message):
    folder = finished[-1]
    kept = (folder / "task.json").read_text()
    changed = {k: v for k, v in json.loads(kept).items() if k != "thresholds"}
    changed |= {} if thresholds is None else {"thresholds": thresholds}
    try:
        write_manifest(folder, changed)
        with pytest.raises(RecipeError) as error:
            load_result(folder)
    finally:
        (folder / "task.json").write_text(kept)
    assert message in str(error.value)
    assert len(error.value.problems) == 1


def test_thresholds_that_the_recipe_does_not_decide_are_refused(finished):
    recipe, _, _, _, folder = finished
    sidecar = json.loads((folder / "task.json").read_text())
    check_sidecar(recipe, sidecar)
    with pytest.raises(RecipeError, match="has thresholds, but its recipe decides none"):
        check_sidecar(replace(recipe, task=replace(recipe.task, tune_thresholds=False)), sidecar)


def recipe_of(task):
    return Recipe(name="a", task=task, model=Model(name_or_path="b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune_thresholds": True}, "task.tune_thresholds: is for problem_type"),
        ({"thresholds": {"a": 0.5}}, "task.thresholds: is for problem_type"),
        (
            {"problem_type": "regression", "tune_thresholds": True},
            "task.tune_thresholds: is for problem_type",
        ),
        (
            {"problem_type": "multi_label_classification", "thresholds": {"a": 1, "b": 0.2}},
            "task.thresholds: the threshold of 'a' is 1; it must be between 0 and 1.",
        ),
        (
            {
                "problem_type": "multi_label_classification",
                "thresholds": {"a": 0.1, "b": 0.2},
                "tune_thresholds": True,
            },
            "task.tune_thresholds: would replace the given thresholds. Give one of them.",
        ),
    ],
)
def test_options_that_no_run_can_use_are_one_message(options, message):
    with pytest.raises(RecipeError) as error:
        recipe_of(TextClassification(dataset=ANYWHERE, **options))
    assert len(error.value.problems) == 1
    assert str(error.value).startswith(message)


def test_given_thresholds_are_of_the_labels_of_the_training_rows():
    rows = Examples([{"text": "x", "label": ["a"]}, {"text": "x", "label": ["b"]}], "rows")
    with pytest.raises(RecipeError, match="task.thresholds: 'c' is not a label; no value for 'b'"):
        several(thresholds={"a": 0.5, "c": 0.5}).labels(rows)


def test_thresholds_are_typed_as_pairs_and_survive_recipe_json():
    typed = parse(recipe_of(several()), ["r.py", "--task.thresholds", "a", "0.3", "b", ".5"])
    assert typed.task.thresholds == {"a": 0.3, "b": 0.5}
    assert Recipe.from_json(typed.to_json()) == typed
    assert parse(recipe_of(several()), ["r.py", "--task.tune-thresholds"]).task.tune_thresholds
