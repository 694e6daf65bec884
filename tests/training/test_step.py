"""A step on a GPU: the host does not wait for it, and what it leaves out is said a step later."""

import math
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from helpers.callbacks import NaNAt, NaNGradientAt
from helpers.factories import method
from helpers.waits import waits
from pipelines.errors import NonFiniteError
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.training.checkpoints import all_checkpoints
from pipelines.training.updates import poison_gradients

FIRST, LAST, LOGGED = 3, 6, 8
MASKS = "transformers/masking_utils.py"
"""Looks whether rows are packed, on the way to a dense mask."""


def recipe_for(task, checkpoint, folder, name="full", **train):
    options = {"max_steps": LOGGED, "global_batch_size": 8, "per_device_train_batch_size": 4}
    options |= {"logging_steps": LOGGED, "save_steps": None, "learning_rate": 1e-3}
    return Recipe(
        name="step",
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(**options | train),
        output_dir=str(folder),
        **method(name),
    )


class Waits(TrainerCallback):
    """Keeps what the host reads from step FIRST until step LAST."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == FIRST:
            self.stack = ExitStack()
            self.found = self.stack.enter_context(waits())
        if state.global_step == LAST:
            self.stack.close()


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("causal_lm", "full"),
        ("text_classification", "lora"),
        ("question_answering", "4bit"),
        ("instruction_tuning", "lora"),
        ("preference_tuning", "lora"),
    ],
)
def test_no_step_between_two_logs_reads_a_value(tasks, checkpoint, tmp_path, task, name):
    seen = Waits()
    run(recipe_for(tasks[task], checkpoint, tmp_path / "run", name), [seen])
    assert [each for each in seen.found if MASKS not in each] == []


def test_a_value_that_is_read_is_counted():
    with waits() as found:
        float(torch.ones(()))
        torch.ones(2).nonzero()
    assert any("__float__" in each for each in found)
    assert any("nonzero" in each for each in found)


class Trainer(TrainerCallback):
    """Keeps the weights and the optimizer's state from before a step, and what trains."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step == self.step:
            self.model, self.optimizer, self.state = model, optimizer.optimizer, state
            self.weights = [each.clone() for each in model.parameters()]
            self.before = [each.clone() for each in self.tensors()]

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self.scheduler = lr_scheduler

    def tensors(self):
        """Return the optimizer's state."""
        states = self.optimizer.state
        return [t for p in self.model.parameters() for t in states[p].values()]


def test_after_an_update_that_is_left_out_all_is_as_before_it(tasks, checkpoint, tmp_path):
    """Two updates were made. The rate falls from 1e-3 to 0 in 8: it is 7.5e-4 in the third."""
    recipe = recipe_for(tasks["causal_lm"], checkpoint, tmp_path / "run", save_steps=2)
    recipe = replace(recipe, train=replace(recipe.train, warmup_steps=0))
    seen = Trainer(2)
    with pytest.raises(NonFiniteError, match=r"step 3: .* is nan, at a learning rate of 0\.00075,"):
        run(recipe, [seen, NaNGradientAt(2)])
    assert all(map(torch.equal, seen.weights, seen.model.parameters()))
    assert all(map(torch.equal, seen.before, seen.tensors()))
    assert {float(each["step"]) for each in seen.optimizer.state.values()} == {2.0}
    assert seen.state.global_step == 2
    assert seen.scheduler.get_last_lr() == pytest.approx([7.5e-4] * 2)
    assert [group["lr"] for group in seen.optimizer.param_groups] == pytest.approx([7.5e-4] * 2)
    [checkpoint] = all_checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoint.name == "checkpoint-2"


@pytest.mark.parametrize("options", [{"save_steps": 3}, {"logging_steps": 3}, {"eval_steps": 3}])
def test_no_log_checkpoint_or_score_follows_an_update_that_was_left_out(
    tasks, checkpoint, tmp_path, options
):
    class Later(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            assert not {"grad_norm", "eval_loss"} & logs.keys() or state.global_step < 3

        def on_save(self, args, state, control, **kwargs):
            raise AssertionError

    recipe = recipe_for(tasks["text_classification"], checkpoint, tmp_path / "run", **options)
    with pytest.raises(NonFiniteError, match="step 3: "):
        run(recipe, [Later(), NaNAt(2)])
    assert all_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_the_last_update_of_a_run_is_looked_at(tasks, checkpoint, tmp_path):
    recipe = recipe_for(tasks["text_classification"], checkpoint, tmp_path / "run", max_steps=3)
    with pytest.raises(NonFiniteError, match="step 3: "):
        run(recipe, [NaNAt(2)])
    assert not (tmp_path / "run" / "task.json").exists()


def test_a_loss_that_is_not_finite_makes_its_gradients_nan_and_another_leaves_them():
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    loss = 1e30 * weight.sum()
    poison_gradients(loss)
    loss.backward()
    assert weight.grad.equal(torch.full((2,), 1e30))
    infinite = weight.sum() + float("inf")
    weight.grad = None
    poison_gradients(infinite)
    infinite.backward()
    assert weight.grad.isnan().all()
    assert infinite.item() == math.inf


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("causal_lm", "full"),
        ("causal_lm", "8bit"),
        ("text_classification", "lora"),
        ("question_answering", "4bit"),
        ("preference_tuning", "lora"),
    ],
)
def test_activation_checkpointing_changes_no_loss(tasks, checkpoint, tmp_path, task, name):
    losses = []
    for wanted in (False, True):
        logs = Logs()
        options = {"logging_steps": 1, "max_steps": 2, "activation_checkpointing": wanted}
        run(recipe_for(tasks[task], checkpoint, tmp_path / str(wanted), name, **options), [logs])
        assert logs.checkpointed is wanted
        losses.append(logs.seen)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


class Logs(TrainerCallback):
    """Keeps losses and gradient norms."""

    def __init__(self):
        self.seen, self.checkpointed = [], None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.checkpointed = any(
            getattr(each, "gradient_checkpointing", False) for each in model.modules()
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in logs:
            self.seen += [logs["loss"], logs["grad_norm"]]


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["causal_lm", "text_classification", "preference_tuning"])
def test_no_step_on_a_gpu_waits_for_it(tasks, checkpoint, tmp_path, task):
    """Neither the first nor the last step: there are logs and checkpoints."""
    run(recipe_for(tasks[task], checkpoint, tmp_path / "run", "lora"), [NoSynchronisation()])


class NoSynchronisation(TrainerCallback):
    """Lets torch raise where the host waits for a GPU, from step FIRST until step LAST."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step in (FIRST, LAST):
            torch.cuda.set_sync_debug_mode("error" if state.global_step == FIRST else "default")
