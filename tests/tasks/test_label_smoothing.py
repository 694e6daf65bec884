"""Label smoothing of labels and of answers, worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.data.source import DatasetSource
from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.tasks.question_answering import QuestionAnswering, mean_loss
from pipelines.tasks.text_classification import TextClassification

ANYWHERE = DatasetSource(path="nowhere")
LN2 = math.log(2)
QUARTERS = [math.log(0.5), math.log(0.25), math.log(0.25)]  # logits; -log p is 1, 2 and 2 ln 2


def loss(task, logits, targets, *weights):
    """Return the loss of one batch."""
    outputs = SimpleNamespace(logits=torch.tensor(logits))
    targets = torch.tensor(targets)
    return float(task.loss(outputs, targets, targets.numel(), *weights))


def test_a_fraction_of_the_target_is_spread_over_all_labels():
    task = TextClassification(dataset=ANYWHERE, label_smoothing=0.3)
    # 0.7 of the label's own -log p, and 0.1 of that of each label
    expected = (0.7 * 1 + 0.1 * (1 + 2 + 2)) * LN2
    assert loss(task, [QUARTERS], [0]) == pytest.approx(expected)


def test_each_label_keeps_its_weight_when_it_is_smoothed():
    task = TextClassification(dataset=ANYWHERE, label_smoothing=0.3)
    weights = [1.0, 2.0, 5.0]
    expected = (0.7 * 2 * 2 + 0.1 * (1 * 1 + 2 * 2 + 5 * 2)) * LN2
    assert loss(task, [QUARTERS], [1], weights) == pytest.approx(expected)


def test_several_labels_are_smoothed_towards_one_half():
    task = TextClassification(
        dataset=ANYWHERE, problem_type="multi_label_classification", label_smoothing=0.2
    )
    # a logit of ln 3 is a probability of 3/4; targets 1 and 0 become 0.9 and 0.1
    yes, no = -math.log(0.75), math.log(4)
    logits, targets = [[math.log(3), math.log(3)]], [[1.0, 0.0]]
    expected = (0.9 * yes + 0.1 * no) + (0.1 * yes + 0.9 * no)
    assert loss(task, logits, targets) == pytest.approx(expected / 2)
    weighted = (0.9 * 4 * yes + 0.1 * no) + (0.1 * 2 * yes + 0.9 * no)
    assert loss(task, logits, targets, [4.0, 2.0]) == pytest.approx(weighted / 2)


def span_outputs(start, end):
    return SimpleNamespace(start_logits=torch.tensor([start]), end_logits=torch.tensor([end]))


def test_spans_are_smoothed_over_the_positions_to_choose_from_alone():
    """Positions 1, 2 and 3 of 5 can be chosen; 0 is the question, 4 padding."""
    start = [9.0, *QUARTERS, 99.0]
    end = [-9.0, *QUARTERS[::-1], 0.0]
    labels = torch.tensor([[1, 3, 1, 4]])  # -log p of the start and of the end is ln 2
    plain = QuestionAnswering(dataset=ANYWHERE)
    smoothed = QuestionAnswering(dataset=ANYWHERE, label_smoothing=0.3)
    num_items = torch.tensor(4)
    got = plain.loss(span_outputs(start, end), labels, num_items)
    assert float(got) == pytest.approx(LN2)
    got = smoothed.loss(span_outputs(start, end), labels, num_items)
    assert float(got) == pytest.approx((0.7 * 1 + 0.1 * (1 + 2 + 2)) * LN2)


def test_smoothing_gives_positions_outside_the_window_no_gradient():
    task = QuestionAnswering(dataset=ANYWHERE, label_smoothing=0.3)
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    outputs = SimpleNamespace(start_logits=logits, end_logits=logits)
    task.loss(outputs, torch.tensor([[2, 3, 2, 5], [3, 3, 1, 4]]), torch.tensor(8)).backward()
    gone = (logits.grad == 0).tolist()
    assert gone == [
        [True, True, False, False, False, True],
        [True, False, False, False, True, True],
    ]
    assert torch.isfinite(logits.grad).all()


def test_accumulated_windows_have_the_loss_of_one_batch():
    task = QuestionAnswering(dataset=ANYWHERE, label_smoothing=0.3)
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 8, 7, generator=generator)
    labels = torch.tensor([[i % 4 + 1, 5, 1, 6 + i % 2] for i in range(8)])

    def of_rows(rows):
        outputs = SimpleNamespace(start_logits=start[rows], end_logits=end[rows])
        return float(task.loss(outputs, labels[rows], torch.tensor(32)))

    parts = of_rows(slice(4)) + of_rows(slice(4, 8))
    assert parts == pytest.approx(of_rows(slice(8)), rel=1e-6)


def test_the_reported_loss_of_answers_is_not_smoothed():
    logits = np.array([[[9.0, -9.0], *zip(QUARTERS, QUARTERS[::-1], strict=True), [99.0, 0.0]]])
    assert mean_loss(logits, [[1, 3, 1, 4]]) == pytest.approx(LN2)


@pytest.mark.parametrize("value", [1.0, -0.1])
@pytest.mark.parametrize("kind", [TextClassification, QuestionAnswering])
def test_a_fraction_outside_its_bounds_is_one_message(kind, value):
    task = kind(dataset=ANYWHERE, label_smoothing=value)
    with pytest.raises(RecipeError, match="task.label_smoothing: .* is out of range") as error:
        Recipe(name="a", task=task, model=Model(name_or_path="b"))
    assert len(error.value.problems) == 1


def test_smoothing_of_a_regression_is_one_message():
    task = TextClassification(dataset=ANYWHERE, problem_type="regression", label_smoothing=0.1)
    with pytest.raises(RecipeError) as error:
        Recipe(name="a", task=task, model=Model(name_or_path="b"))
    assert str(error.value) == "task.label_smoothing: is for labels; a regression learns a number."
