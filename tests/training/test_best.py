"""Chosen by the validation rows: the best checkpoint, and when to stop."""

import os
import signal
import subprocess
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers.factories import make_tasks, method
from helpers.resumable_runs import flip, weights
from pipelines.errors import CheckpointError, Preempted, RecipeError
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.hub.card import model_card
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.results.files import read_manifest
from pipelines.training.checkpoints import all_checkpoints, step_of

BEST = Train(
    max_steps=12,
    learning_rate=3e-2,
    warmup_steps=0,
    lr_scheduler_type="constant_with_warmup",
    global_batch_size=8,
    eval_steps=2,
    save_steps=5,
    keep="best",
    metric_for_best="loss",
)
"""Steps so large that the loss of the validation rows soon grows."""


def recipe_for(helpdesk, checkpoint, folder, task="text_classification", name="full", **options):
    """Return a run that overfits at once, with test rows held out."""
    return Recipe(
        name="chosen",
        task=make_tasks(helpdesk)[task],
        model=Model(name_or_path=str(checkpoint)),
        train=replace(BEST, **options),
        output_dir=str(folder),
        **method(name, lora_dropout=0.1),
    )


class Watch(TrainerCallback):
    """Note evaluations with the weights of each, steps and checkpoints."""

    def __init__(self):
        self.losses, self.copies, self.steps, self.kept = {}, {}, [], []
        self.primary = {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append(state.global_step + 1)

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        self.losses[state.global_step] = metrics["eval_loss"]
        self.primary[state.global_step] = metrics[f"eval_{metrics['eval_primary']}"]
        trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        self.copies[state.global_step] = trained

    def on_save(self, args, state, control, **kwargs):
        from pathlib import Path

        self.kept.append([step_of(each) for each in all_checkpoints(Path(args.output_dir))])


class StopBefore(TrainerCallback):
    """Send SIGTERM before a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class FailInTest(TrainerCallback):
    """Fail after an evaluation at the end, when the best weights are loaded."""

    def on_predict(self, args, state, control, **kwargs):
        raise RuntimeError("the power failed")


@pytest.mark.parametrize("name", ["full", "lora", "8bit"])
def test_the_result_has_the_weights_of_the_best_evaluation(name, helpdesk, checkpoint, tmp_path):
    watch = Watch()
    metrics = run(recipe_for(helpdesk, checkpoint, tmp_path, name=name), [watch])
    best = min(watch.losses, key=watch.losses.get)
    assert list(watch.losses) == [2, 4, 6, 8, 10, 12]
    assert best < 12
    assert metrics["validation"]["loss"] == pytest.approx(watch.losses[best], rel=1e-6)
    [file] = [*tmp_path.glob("model.safetensors"), *tmp_path.glob("adapter_model.safetensors")]
    saved = load_file(file)
    expected = sorted(watch.copies[best].values(), key=lambda each: (each.shape, each.sum()))
    found = sorted(saved.values(), key=lambda each: (each.shape, each.sum()))
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    kept = read_manifest(tmp_path)["kept"]
    assert kept == {
        "keep": "best",
        "step": best,
        "last_step": 12,
        "planned_steps": 12,
        "metric": "loss",
        "best": watch.losses[best],
    }
    assert evaluate(tmp_path).equal


@pytest.mark.parametrize(
    "task", ["causal_lm", "question_answering", "instruction_tuning", "preference_tuning"]
)
def test_the_best_by_its_primary_metric_is_never_worse_than_the_last(
    task, helpdesk, checkpoint, tmp_path
):
    options = {"task": task, "name": "lora", "metric_for_best": None, "max_steps": 6}
    recipe, watch = recipe_for(helpdesk, checkpoint, tmp_path, **options), Watch()
    run(recipe, [watch])
    kept = read_manifest(tmp_path)["kept"]
    primary, greater_is_better = next(iter(recipe.task.metrics.items()))
    assert kept["metric"] == primary
    found = [value for step, value in watch.primary.items() if step > 0]
    assert kept["best"] == (max(found) if greater_is_better else min(found))
    assert watch.primary[kept["step"]] == kept["best"]
    assert set(recipe.task.metrics) <= set(read_manifest(tmp_path)["metrics"])
    assert evaluate(tmp_path).equal


def test_patience_ends_a_run_that_only_gets_worse(helpdesk, checkpoint, tmp_path, capsys):
    watch = Watch()
    recipe = recipe_for(helpdesk, checkpoint, tmp_path, max_steps=40, early_stopping_patience=2)
    run(recipe, [watch])
    kept = read_manifest(tmp_path)["kept"]
    best = min(watch.losses, key=watch.losses.get)
    assert kept["step"] == best
    assert kept["last_step"] == best + 4 < 20
    assert kept["planned_steps"] == 40
    printed = capsys.readouterr().out
    assert f"stopped early at step {best + 4} of 40: 2 evaluations in a row" in printed
    assert f"keeping step {best} of {best + 4}: loss" in printed
    card = model_card(recipe.with_test_rows(), read_manifest(tmp_path), "user/chosen")
    chosen = f"step {best} of {best + 4}, the best evaluation by <code>loss</code>"
    assert f"| weights | {chosen}; stopped early, 40 were planned |" in card
    assert "These are test rows: nothing was chosen by them." in card


def test_a_threshold_counts_small_gains_as_none(helpdesk, checkpoint, tmp_path):
    recipe = recipe_for(
        helpdesk,
        checkpoint,
        tmp_path,
        keep="last",
        early_stopping_patience=2,
        early_stopping_threshold=1e9,
    )
    run(recipe)
    # the first evaluation has none to compare with; two more are not better by 1e9
    kept = read_manifest(tmp_path)["kept"]
    assert (kept["keep"], kept["step"], kept["last_step"]) == ("last", 6, 6)


@pytest.fixture(scope="module")
def whole(helpdesk, checkpoint, tmp_path_factory):
    """Return the recipe and the folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    options = {"name": "lora", "max_steps": 40, "early_stopping_patience": 2}
    recipe = recipe_for(helpdesk, checkpoint, folder / "run", **options)
    run(recipe)
    return recipe, folder / "run"


@pytest.mark.parametrize("step", [2, 3, 5, 6])
def test_an_interrupted_run_chooses_and_stops_as_a_whole_one(step, whole, tmp_path):
    recipe, folder = whole
    recipe = replace(recipe, output_dir=str(tmp_path))
    with pytest.raises(Preempted):
        run(recipe, [StopBefore(step)])
    watch = Watch()
    run(recipe, [watch])
    last = read_manifest(folder)["kept"]["last_step"]
    assert watch.steps == list(range(step + 1, last + 1))
    assert weights(tmp_path) == weights(folder)
    assert read_manifest(tmp_path)["kept"] == read_manifest(folder)["kept"]


def test_a_run_that_failed_with_the_best_weights_loaded_trains_no_more(whole, tmp_path):
    recipe, folder = whole
    recipe = replace(recipe, output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="power"):
        run(recipe, [FailInTest()])
    watch = Watch()
    run(recipe, [watch])
    assert watch.steps == []
    assert weights(tmp_path) == weights(folder)
    assert read_manifest(tmp_path)["kept"] == read_manifest(folder)["kept"]


def test_rotation_leaves_the_best_of_each_checkpoint_that_is_left(whole, tmp_path):
    recipe, folder = whole
    recipe = replace(recipe, output_dir=str(tmp_path))
    watch = Watch()
    run(recipe, [watch])
    best = read_manifest(folder)["kept"]["step"]
    after = [kept for kept in watch.kept if kept[0] > best]
    assert after
    assert all(best in kept for kept in after)
    assert max(map(len, watch.kept)) <= 4


def test_the_best_is_kept_where_the_newest_checkpoint_is_damaged(whole, tmp_path):
    recipe, folder = whole
    recipe = replace(recipe, output_dir=str(tmp_path))
    best = read_manifest(folder)["kept"]["step"]
    with pytest.raises(Preempted):
        run(recipe, [StopBefore(best + 1)])
    newest = all_checkpoints(tmp_path / "checkpoints")[0]
    flip(newest / "adapter_model.safetensors")
    run(recipe)
    assert weights(tmp_path) == weights(folder)


def test_a_damaged_best_checkpoint_is_named(whole, tmp_path):
    recipe, folder = whole
    recipe = replace(recipe, output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="power"):
        run(recipe, [FailInTest()])
    best = read_manifest(folder)["kept"]["step"]
    flip(tmp_path / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=f"checkpoint-{best} has the weights of the best"):
        run(recipe)


def test_two_ranks_stop_together_and_choose_as_one(whole, commands, tmp_path):
    recipe, folder = whole
    file = tmp_path / "recipe.json"
    file.write_text(replace(recipe, output_dir=str(tmp_path / "run")).to_json())
    command = [commands.python, "-m", "pipelines", "train", str(file), "--config-file"]
    command += ["cpu_2_processes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    kept, expected = read_manifest(tmp_path / "run")["kept"], read_manifest(folder)["kept"]
    assert kept["step"] <= kept["last_step"] - 4
    assert kept["last_step"] < 40
    assert kept["best"] == pytest.approx(expected["best"], rel=0.5)  # other dropout masks
    assert evaluate(tmp_path / "run").equal


@pytest.mark.parametrize(
    ("options", "field", "text"),
    [
        ({"eval_steps": None}, "train.keep", "Set train.eval_steps"),
        ({"eval_steps": 12}, "train.eval_steps", "12 is not before the last step, 12"),
        ({"save_steps": None}, "train.keep", "Set train.save_steps"),
        (
            {"metric_for_best": "f1"},
            "train.metric_for_best",
            "Known: accuracy, macro_f1,",
        ),
        (
            {"keep": "last", "early_stopping_patience": 1, "eval_steps": None},
            "train.early_stopping_patience",
            "Set train.eval_steps",
        ),
        ({"keep": "last"}, "train.metric_for_best", "nothing is chosen by it"),
        (
            {"early_stopping_threshold": 0.1},
            "train.early_stopping_threshold",
            "train.early_stopping_patience",
        ),
        ({"early_stopping_patience": 0}, "train.early_stopping_patience", "0"),
    ],
)
def test_a_choice_that_cannot_be_made_is_one_message(
    options, field, text, helpdesk, checkpoint, tmp_path
):
    with pytest.raises(RecipeError) as raised:
        recipe_for(helpdesk, checkpoint, tmp_path, **options)
    [problem] = raised.value.problems
    assert problem.path == field
    assert text in problem.message
