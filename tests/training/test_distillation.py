"""The loss towards a teacher, worked out by hand; runs that have one."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.factories import make_tasks
from pipelines.errors import RecipeError
from pipelines.flow import run
from pipelines.hub.contents import make_portable
from pipelines.hub.pin import pin_revisions
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Distillation, Model, Train
from pipelines.tasks.distances import divergence
from pipelines.training.distillation import DistilledLoss, Teacher


def outputs(**logits):
    return SimpleNamespace(**{name: torch.tensor(value) for name, value in logits.items()})


def test_the_divergence_is_that_of_its_formula():
    """Probabilities 3/4, 1/4 of the teacher against 1/2, 1/2; a temperature of 2 undone."""
    logits, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(divergence(logits, teacher, 2.0)) == pytest.approx(4 * expected, rel=1e-6)
    assert float(divergence(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)


def test_a_classifiers_distance_is_divided_by_the_labels_of_the_global_batch(helpdesk):
    task = make_tasks(helpdesk)["text_classification"]
    one = outputs(logits=[[0.0, 0.0], [1.0, 1.0]])
    other = outputs(logits=[[math.log(3), 0.0], [5.0, 5.0]])  # the second row is the same
    found = task.distillation_loss(one, other, torch.tensor([0, 1]), torch.tensor(4), 1.0)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(found) == pytest.approx(expected / 4, rel=1e-6)


def test_several_labels_are_each_compared_with_their_opposites(helpdesk):
    task = make_tasks(helpdesk)["text_classification"]
    task = replace(task, problem_type="multi_label_classification")
    found = task.distillation_loss(
        outputs(logits=[[0.0, 0.0]]),
        outputs(logits=[[math.log(3), 0.0]]),
        None,
        torch.tensor(2),
        1.0,
    )
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(found) == pytest.approx(expected / 2, rel=1e-6)


def test_answers_are_compared_inside_of_the_bounds_alone(helpdesk):
    task = make_tasks(helpdesk)["question_answering"]
    student = outputs(start_logits=[[9.0, 0.0, 0.0, 7.0]], end_logits=[[9.0, 0.0, 0.0, 7.0]])
    teacher = outputs(
        start_logits=[[0.0, math.log(3), 0.0, 1.0]], end_logits=[[5.0, 0.0, 0.0, 2.0]]
    )
    labels = torch.tensor([[1, 2, 1, 3]])  # positions 1 and 2 can be chosen
    found = task.distillation_loss(student, teacher, labels, torch.tensor(4), 1.0)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(found) == pytest.approx(expected / 2, rel=1e-5)


def test_a_language_model_is_compared_where_a_token_is_learned(helpdesk):
    task = make_tasks(helpdesk)["causal_lm"]
    student = outputs(logits=[[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    teacher = outputs(logits=[[[math.log(3), 0.0], [8.0, 0.0], [8.0, 0.0]]])
    labels = torch.tensor([[0, 1, -100]])
    found = task.distillation_loss(student, teacher, labels, torch.tensor(1), 1.0)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_shared_by_weight_in_training_and_the_tasks_own_in_evaluations(helpdesk):
    task = make_tasks(helpdesk)["text_classification"]
    logits = torch.zeros(1, 2)
    model = lambda **given: outputs(logits=[[math.log(3), 0.0]])  # noqa: E731
    teacher = Teacher(model, task, temperature=1.0, weight=0.25)
    loss = DistilledLoss(task.loss, teacher)
    labels, student = torch.tensor([0]), SimpleNamespace(logits=logits)
    teacher.look({"input_ids": logits, "labels": labels, "plan": None})
    apart = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    own = math.log(2)
    assert float(loss(student, labels, 1)) == pytest.approx(0.75 * own + 0.25 * apart, rel=1e-6)
    assert float(loss(student, labels, 1)) == pytest.approx(own, rel=1e-6)


def recipe_of(task, checkpoint, folder, helpdesk, **options):
    return Recipe(
        name=task,
        task=make_tasks(helpdesk)[task],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=3, learning_rate=1e-2, warmup_steps=0, global_batch_size=8),
        output_dir=str(folder),
        **options,
    )


@pytest.fixture(scope="module")
def teachers(checkpoint, helpdesk, tmp_path_factory):
    """A trained result for each task that has a distance."""
    folder = tmp_path_factory.mktemp("teachers")
    for task in ("text_classification", "question_answering", "causal_lm"):
        run(recipe_of(task, checkpoint, folder / task, helpdesk))
    return folder


@pytest.mark.parametrize("task", ["text_classification", "causal_lm"])
def test_a_student_comes_closer_to_its_teacher_than_to_its_labels(
    task, teachers, checkpoint, helpdesk, tmp_path
):
    """From the same start by the same steps, the teacher's loss alone ends nearest to it."""
    from pipelines.hub.load import load_result
    from pipelines.inference.merge import logits_of, rows_of_run, some_inputs

    def distance(folder):
        loaded, teacher = load_result(folder), load_result(teachers / task)
        batch = some_inputs(teacher, rows_of_run(teacher))
        return (logits_of(loaded.model, batch) - logits_of(teacher.model, batch)).norm()

    towards = Distillation(teacher=str(teachers / task), weight=1.0, temperature=1.0)
    alone = recipe_of(task, checkpoint, tmp_path / "labels", helpdesk)
    alone = replace(alone, train=replace(alone.train, seed=7))
    run(alone)
    run(replace(alone, distillation=towards, output_dir=str(tmp_path / "teacher")))
    assert distance(tmp_path / "teacher") < distance(tmp_path / "labels")


def test_a_reader_of_answers_learns_the_positions_of_its_teacher(
    teachers, checkpoint, helpdesk, tmp_path
):
    towards = Distillation(teacher=str(teachers / "question_answering"), weight=1.0)
    run(recipe_of("question_answering", checkpoint, tmp_path, helpdesk, distillation=towards))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "grad_norm" in line]
    assert losses[-1] < losses[0] / 3


def test_a_teacher_of_another_task_or_of_other_labels_is_refused(
    teachers, checkpoint, helpdesk, tmp_path
):
    towards = Distillation(teacher=str(teachers / "causal_lm"))
    with pytest.raises(RecipeError, match="is a CausalLM, and the recipe's task a TextClassif"):
        run(recipe_of("text_classification", checkpoint, tmp_path, helpdesk, distillation=towards))
    given = recipe_of("text_classification", checkpoint, tmp_path, helpdesk)
    towards = Distillation(teacher=str(teachers / "text_classification"))
    (tmp_path / "rows.csv").write_text("text,queue\n" + "a b,x\nc d,y\n" * 10)
    source = replace(
        given.task.dataset, path=str(tmp_path / "rows.csv"), eval_split=None, eval_fraction=0.5
    )
    other = replace(given, task=replace(given.task, dataset=source), distillation=towards)
    with pytest.raises(RecipeError, match="distillation.teacher: has the labels"):
        run(other)


@pytest.mark.parametrize("task", ["instruction_tuning", "preference_tuning"])
def test_a_task_without_a_distance_takes_no_teacher(task, checkpoint, helpdesk, tmp_path):
    from pipelines.recipe.values import Lora

    with pytest.raises(RecipeError, match="this task cannot learn from a teacher"):
        recipe_of(
            task,
            checkpoint,
            tmp_path,
            helpdesk,
            lora=Lora(),
            distillation=Distillation(teacher="x"),
        )


def test_a_teacher_is_named_explicitly_and_to_others_without_this_machines_folders(
    teachers, checkpoint, helpdesk, tmp_path, monkeypatch
):
    monkeypatch.chdir(teachers.parent)
    relative = Distillation(teacher=f"{teachers.name}/causal_lm")
    recipe = recipe_of("causal_lm", checkpoint, tmp_path, helpdesk, distillation=relative)
    found = pin_revisions(recipe).distillation
    assert found == Distillation(teacher=f"./{teachers.name}/causal_lm")
    absolute = replace(recipe, distillation=Distillation(teacher=str(teachers / "causal_lm")))
    monkeypatch.chdir(tmp_path)
    assert make_portable(absolute).distillation == Distillation(teacher="./causal_lm")
