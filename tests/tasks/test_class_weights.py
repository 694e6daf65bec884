"""Weights of labels in the training loss, worked out by hand."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipelines.data.load import load_splits
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import RecipeError
from pipelines.flow import run
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.recipe_cli import parse
from pipelines.tasks.base import Features
from pipelines.tasks.text_classification import TextClassification
from pipelines.training.build import build_trainer
from pipelines.training.trainer import score_of

ANYWHERE = DatasetSource(path="nowhere")
LN2 = math.log(2)
HALF = [math.log(0.5), math.log(0.25), math.log(0.25)]  # logits of probabilities 1/2, 1/4, 1/4


def one_label(**options):
    return TextClassification(dataset=ANYWHERE, **options)


def several(**options):
    return one_label(problem_type="multi_label_classification", **options)


def features(targets):
    """Return rows with these targets."""
    return Features([{"labels": each} for each in targets], {}, num_rows=len(targets))


def loss(task, logits, targets, labels, rows=None):
    """Return the training loss of a batch of all rows, or of these."""
    trained = task.training_loss(features(targets), labels)
    chosen = range(len(targets)) if rows is None else rows
    given = torch.tensor([targets[i] for i in chosen])
    outputs = SimpleNamespace(logits=torch.tensor([logits[i] for i in chosen]))
    return float(trained(outputs, given, torch.tensor(torch.tensor(targets).numel())))


def test_balanced_weights_are_those_of_scikit_learn_and_1_on_average():
    # 8 rows, 3 classes with 5, 2 and 1 rows: 8/(3*5), 8/(3*2), 8/(3*1)
    targets = [0, 0, 0, 0, 0, 1, 1, 2]
    weights = one_label(class_weights="balanced").loss_weights(features(targets), ("a", "b", "c"))
    assert weights == pytest.approx([8 / 15, 8 / 6, 8 / 3])
    assert sum(weights[each] for each in targets) / 8 == pytest.approx(1)


def test_a_label_without_training_rows_has_weight_1_and_counts_for_no_other():
    # 4 rows, 2 classes with rows: 4/(2*3), 4/(2*1)
    weights = one_label(class_weights="balanced").loss_weights(
        features([0, 0, 0, 2]), ("a", "b", "c")
    )
    assert weights == pytest.approx([4 / 6, 1, 2])


def test_the_loss_of_a_row_is_multiplied_by_the_weight_of_its_label():
    # -log p is ln 2 of class 0 and 2 ln 2 of the others; given weights are not scaled: over 3 rows
    logits, targets, labels = [HALF] * 3, [0, 1, 2], ("a", "b", "c")
    weighted = one_label(class_weights={"c": 5, "a": 1.0, "b": 0.5})
    assert loss(weighted, logits, targets, labels) == pytest.approx((1 + 1 + 10) * LN2 / 3)
    assert loss(one_label(), logits, targets, labels) == pytest.approx((1 + 2 + 2) * LN2 / 3)
    # balanced, of rows 0 0 1: 3/(2*2) and 3/(2*1)
    balanced = one_label(class_weights="balanced")
    expected = (2 * 0.75 * 1 + 1.5 * 2) * LN2 / 3
    assert loss(balanced, logits, [0, 0, 1], labels) == pytest.approx(expected)


def test_balanced_positive_rows_of_a_label_weigh_as_much_as_its_negative_ones():
    # label a: 1 row with it, 3 without; b: 2 and 2; c: none; d: all
    targets = [[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.0] * 3 + [1.0], [0.0] * 3 + [1.0]]
    task, labels = several(class_weights="balanced"), ("a", "b", "c", "d")
    assert task.loss_weights(features(targets), labels) == pytest.approx([3, 1, 1, 1])
    # a logit of ln 3 is a probability of 3/4: -log p is -ln 3/4, -log(1 - p) is ln 4
    logits = [[math.log(3)] * 4] * 4
    yes, no = -math.log(0.75), math.log(4)
    expected = (3 * yes + 3 * no) + (2 * yes + 2 * no) + 4 * no + 4 * yes
    assert loss(task, logits, targets, labels) == pytest.approx(expected / 16)
    given = several(class_weights={"a": 2, "b": 1, "c": 1, "d": 0.5})
    expected = (2 * yes + 3 * no) + (2 * yes + 2 * no) + 4 * no + 0.5 * 4 * yes
    assert loss(given, logits, targets, labels) == pytest.approx(expected / 16)


@pytest.mark.parametrize("several_labels", [False, True])
@pytest.mark.parametrize("weights", ["balanced", {"a": 1, "b": 7, "c": 0.3}])
def test_a_batch_of_8_has_the_loss_of_two_accumulated_batches_of_4(several_labels, weights):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator).tolist()
    targets, task = [0, 0, 0, 0, 0, 0, 1, 2], one_label(class_weights=weights)
    if several_labels:
        targets = torch.eye(3)[targets].tolist()
        task = several(class_weights=weights)
    whole = loss(task, logits, targets, ("a", "b", "c"))
    parts = [loss(task, logits, targets, ("a", "b", "c"), rows) for rows in (range(4), range(4, 8))]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)
    assert abs(parts[0] - parts[1]) > 0.1  # the rare labels are in the second


def test_the_reported_loss_is_not_weighted(checkpoint, tokenizer, tasks, tmp_path):
    def reported(task):
        recipe = Recipe(
            name="tiny",
            task=task,
            model=Model(name_or_path=str(checkpoint)),
            train=Train(max_steps=1, learning_rate=1e-9),
            output_dir=str(tmp_path),
        )
        splits = load_splits(task.dataset)
        labels = task.labels(splits.train)
        torch.manual_seed(0)
        trainer = build_trainer(
            recipe,
            build_model(recipe, tokenizer, labels),
            tokenizer,
            train=task.features(splits.train, tokenizer, labels, training=True),
            held_out=task.features(splits.held_out, tokenizer, labels, training=False),
            labels=labels,
        )
        trained = trainer.train().training_loss
        return trained, score_of(trainer.evaluate())["loss"], labels

    task = tasks["text_classification"]
    trained, plain, labels = reported(task)
    tripled, weighted, _ = reported(replace(task, class_weights=dict.fromkeys(labels, 3)))
    assert tripled == pytest.approx(3 * trained, rel=1e-5)
    assert weighted == pytest.approx(plain, rel=1e-5)


def recipe(task):
    return Recipe(name="a", task=task, model=Model(name_or_path="b"))


@pytest.mark.parametrize("weights", [None, "balanced", {"spam": 3.0, "ham and eggs": 1}])
def test_weights_survive_recipe_json(weights):
    given = recipe(one_label(class_weights=weights))
    assert Recipe.from_json(given.to_json()) == given
    assert json.loads(given.to_json())["task"]["class_weights"] == weights


def test_weights_are_typed_as_a_word_or_as_pairs():
    for given in (one_label(), one_label(class_weights={"spam": 2.0, "ham": 1.0})):
        typed = parse(recipe(given), ["r.py", "--task.class-weights", "balanced"])
        assert typed.task.class_weights == "balanced"
        typed = parse(recipe(given), ["r.py", "--task.class-weights", "spam", "3", "ham", ".5"])
        assert typed.task.class_weights == {"spam": 3.0, "ham": 0.5}
        assert parse(recipe(given), ["r.py"]).task == given


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True])
def test_a_weight_that_is_not_above_0_is_one_message(value):
    with pytest.raises(RecipeError) as error:
        recipe(one_label(class_weights={"spam": value, "ham": 1}))
    (problem,) = error.value.problems
    assert problem.path == "task.class_weights"
    assert problem.message == f"the weight of 'spam' is {value}; it must be a number above 0."


@pytest.mark.parametrize("value", ["balance", 3.0, {"spam": "3"}, [["spam", 3.0]]])
def test_weights_of_another_form_are_one_message(value):
    written = json.loads(recipe(one_label()).to_json())
    written["task"]["class_weights"] = value
    with pytest.raises(RecipeError, match=r"task.class_weights: .*balanced, or dict") as error:
        Recipe.from_json(json.dumps(written))
    assert len(error.value.problems) == 1


def test_weights_of_a_regression_are_one_message():
    with pytest.raises(RecipeError) as error:
        recipe(one_label(problem_type="regression", class_weights="balanced"))
    assert str(error.value) == "task.class_weights: is for labels; a regression learns a number."


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"spam": 3, "hamm": 1}, "'hamm' is not a label; no value for 'ham'. "),
        ({"spam": 3}, "no value for 'ham'. "),
        ({"spam": 3, "ham": 1, "x": 1, "y": 1}, "'x', 'y' is not a label. "),
    ],
)
def test_weights_are_of_the_labels_of_the_training_rows(weights, message):
    rows = Examples([{"text": "a", "label": each} for each in ("spam", "ham")], "rows")
    with pytest.raises(RecipeError) as error:
        one_label(class_weights=weights).labels(rows)
    expected = f"task.class_weights: {message}Give a value for each label: ham, spam."
    assert str(error.value) == expected


def test_weights_of_unknown_labels_end_a_run(checkpoint, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(40)))
    task = TextClassification(dataset=DatasetSource(path=str(file)), class_weights={"2": 1, "1": 1})
    with pytest.raises(RecipeError, match="task.class_weights: '2' is not a label"):
        run(
            Recipe(
                name="a",
                task=task,
                model=Model(name_or_path=str(checkpoint)),
                output_dir=str(tmp_path / "run"),
            )
        )
