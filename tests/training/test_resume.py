"""Interrupted runs end in the same bytes; damaged checkpoints and other runs are told."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from helpers.callbacks import NaNAt, SignalAt
from helpers.factories import CASES, ROOT, make_tasks
from helpers.resumable_runs import TRAIN, command_for, cut, flip, recipe_for, script_for, weights
from pipelines.errors import CheckpointError, Preempted, RecipeError
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch, Tokenizer
from pipelines.training.checkpoints import MARKER, all_checkpoints, find_damage


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_stopped_run_goes_on_to_the_same_bytes(task, name, checkpoint, helpdesk, tmp_path):
    whole = recipe_for(task, name, checkpoint, helpdesk, tmp_path / "whole")
    metrics = run(whole)
    stopped = replace(whole, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(Preempted, match="stopped at step 3"):
        run(stopped, [SignalAt(2)])
    assert not (tmp_path / "stopped" / "task.json").exists()
    names = [c.name for c in all_checkpoints(tmp_path / "stopped" / "checkpoints")]
    assert names == ["checkpoint-3", "checkpoint-2"]
    again = run(stopped)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in metrics.items() if k != "seconds"
    }
    assert not (tmp_path / "stopped" / "checkpoints").exists()


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "muon"])
def test_other_optimizers_go_on_to_the_same_bytes(optim, helpdesk, tmp_path):
    whole = Recipe(
        name="resumed",
        task=make_tasks(helpdesk)["causal_lm"],
        model=Scratch(size="tiny", n_positions=256, tokenizer=Tokenizer(vocab_size=400)),
        train=replace(TRAIN, optim=optim),
        output_dir=str(tmp_path / "whole"),
    )
    run(whole)
    stopped = replace(whole, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(Preempted, match="stopped at step 3"):
        run(stopped, [SignalAt(2)])
    run(stopped)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    plain = replace(whole, train=TRAIN, output_dir=str(tmp_path / "plain"))
    run(plain)
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")


@pytest.mark.parametrize(("streaming", "num_workers"), [(False, 2), (True, 0), (True, 2)], ids=str)
def test_streams_and_workers_go_on_to_the_same_bytes(
    streaming, num_workers, checkpoint, helpdesk, tmp_path
):
    data = shutil.copytree(helpdesk / "documents", tmp_path / "data")
    recipe = recipe_for("causal_lm", "full", checkpoint, helpdesk, tmp_path / "whole")
    source = replace(recipe.task.dataset, path=str(data))
    if streaming:
        source = replace(source, streaming=True, max_eval_rows=8)
    train = replace(TRAIN, dataloader_num_workers=num_workers, max_steps=16)
    whole = replace(recipe, task=replace(recipe.task, dataset=source), train=train)
    run(whole)
    stopped = replace(whole, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(Preempted, match="stopped at step 11"):
        run(stopped, [SignalAt(10)])
    if streaming:
        with (data / "train.jsonl").open("a") as more:
            more.write('{"text": "another document"}\n')
        with pytest.raises(RecipeError, match="data.train: the run in"):
            run(stopped)
        shutil.copy(helpdesk / "documents" / "train.jsonl", data)
    run(stopped)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.fixture
def stopped(checkpoint, helpdesk, tmp_path):
    """A run that was stopped at step 5, with checkpoints 4 and 5."""
    recipe = recipe_for("text_classification", "lora", checkpoint, helpdesk, tmp_path / "run")
    with pytest.raises(Preempted):
        run(recipe, [SignalAt(4)])
    return recipe


DAMAGES = {
    "optimizer.pt is missing": lambda c: (c / "optimizer.pt").unlink(),
    "rng_state.pth is missing": lambda c: (c / "rng_state.pth").unlink(),
    "adapter_model.safetensors has changed": lambda c: flip(c / "adapter_model.safetensors"),
    "trainer_state.json has": lambda c: cut(c / "trainer_state.json"),
    f"{MARKER} is damaged": lambda c: cut(c / MARKER),
    "its writing was interrupted": lambda c: (c / MARKER).unlink(),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(stopped, tmp_path, capsys, said):
    whole = replace(stopped, output_dir=str(tmp_path / "whole"))
    run(whole)
    newest, older = all_checkpoints(tmp_path / "run" / "checkpoints")
    DAMAGES[said](newest)
    capsys.readouterr()
    run(stopped)
    out = capsys.readouterr().out
    assert f"{newest.name} passed over: {said}" in out
    assert f"resuming from {older.name}" in out
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_damaged_checkpoints_alone_are_an_error_and_stay(stopped, tmp_path):
    for checkpoint in all_checkpoints(tmp_path / "run" / "checkpoints"):
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        run(stopped)
    assert len(all_checkpoints(tmp_path / "run" / "checkpoints")) == 2


def test_another_run_does_not_resume(stopped, helpdesk, tmp_path):
    changed = replace(stopped, train=replace(stopped.train, learning_rate=1e-3, seed=7))
    with pytest.raises(RecipeError) as caught:
        run(changed)
    paths = [problem.path for problem in caught.value.problems]
    assert paths == ["train.learning_rate", "train.seed"]
    assert "had 0.01, this one has 0.001" in str(caught.value)
    assert "--allow-changed train.learning_rate" in str(caught.value)
    assert "--allow-changed train.seed" not in str(caught.value)
    with pytest.raises(RecipeError, match="train.seed cannot change when a run resumes: the rows"):
        run(replace(changed, allow_changed=("train.learning_rate", "train.seed")))
    slower = replace(stopped, train=replace(stopped.train, learning_rate=1e-3))
    run(replace(slower, allow_changed=("train.learning_rate",)))


def test_other_data_do_not_resume(stopped, helpdesk, tmp_path):
    data = shutil.copytree(helpdesk / "classify", tmp_path / "data")
    source = replace(stopped.task.dataset, path=str(data))
    moved = replace(stopped, task=replace(stopped.task, dataset=source))
    lines = (data / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(RecipeError) as caught:
        run(moved)
    assert [p.path for p in caught.value.problems] == ["data.train", "task.dataset.path"]


@pytest.fixture
def long_run(helpdesk, tmp_path):
    """A run of random weights, long enough to be hit at any moment."""
    return Recipe(
        name="long",
        task=make_tasks(helpdesk)["causal_lm"],
        model=Scratch(
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=64,
            dropout=0.1,
            tokenizer=Tokenizer(vocab_size=300),
        ),
        train=replace(TRAIN, max_steps=60, save_steps=3),
        output_dir=str(tmp_path / "killed"),
    )


def until_training(command) -> subprocess.Popen:
    """Start a run; return its process in the middle of the training."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("  step "):
            return process
    raise AssertionError(process.stderr.read())


def test_signals_and_their_exit_codes(long_run, tmp_path):
    train = replace(long_run.train, max_steps=4000, dataloader_num_workers=2)
    command = script_for(replace(long_run, train=train), tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process = until_training(command)
        os.killpg(process.pid, number)  # its workers get it too, as from a terminal
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75
        assert "with a checkpoint; run the same command again to resume." in said
        assert "Traceback" not in said

    process = until_training(command)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"--output-dir: process {process.pid} is running in" in done.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_the_second_interrupt_stops_at_once_and_the_last_checkpoint_is_whole(long_run, tmp_path):
    command = command_for(long_run, tmp_path, "SignalAt(5, 'SIGINT', times=2)")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 130
    [checkpoint] = all_checkpoints(tmp_path / "killed" / "checkpoints")
    assert checkpoint.name == "checkpoint-3"
    assert find_damage(checkpoint) is None


def test_what_is_not_finite_stops_before_the_update(checkpoint, helpdesk, tmp_path):
    from pipelines.errors import NonFiniteError

    recipe = recipe_for("text_classification", "full", checkpoint, helpdesk, tmp_path / "run")
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient norm is nan, at a learning"):
        run(recipe, [NaNAt(0)])
    assert not all_checkpoints(tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "run" / "task.json").exists()


def test_the_rows_of_a_step_that_is_no_number_are_named(checkpoint, tmp_path):
    from pipelines.data.source import DatasetSource
    from pipelines.errors import NonFiniteError
    from pipelines.tasks.text_classification import TextClassification

    rows = [{"text": f"ticket {n}", "score": 1e30 if n == 20 else n / 40} for n in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows[:8])))
    source = DatasetSource(path=str(tmp_path), eval_split="test")
    recipe = Recipe(
        name="huge",
        task=TextClassification(dataset=source, problem_type="regression", label_column="score"),
        model=Model(name_or_path=str(checkpoint)),
        train=replace(TRAIN, global_batch_size=4, per_device_train_batch_size=2, max_steps=12),
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(NonFiniteError, match=r"the loss inf; the update was not made") as caught:
        run(recipe)
    named = str(caught.value).split("It was the step of ")[1].rstrip(".").split(", ")
    assert len(named) == 4
    assert f"{tmp_path / 'train.jsonl'}:21" in named


IN_LAST_EVALUATION = """
import os, signal, pipelines.tasks.base as t
real = t.Score.as_metrics
def signalling(score):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGHUP)
    return real(score)
t.Score.as_metrics = signalling
"""


SLOW_RANK_0 = """
import os, time, pipelines.inputs as r
pin = r.pin_revisions
def slow(recipe):
    time.sleep(2 * (os.environ["RANK"] == "0"))
    return pin(recipe)
r.pin_revisions = slow
"""


def launch_two(
    recipe, place, *calls, before="", python=sys.executable
) -> subprocess.CompletedProcess:
    """Run a recipe on two processes, as a user would: nothing but the config says "CPU"."""
    config = str(ROOT / "accelerate_configs" / "cpu_2_processes.yaml")
    if calls:
        [_, script, *rest] = command_for(recipe, place, *calls)
    else:
        [_, script, *rest] = script_for(recipe, place)
        Path(script).write_text(before + Path(script).read_text())
    command = [python, "-m", "accelerate.commands.launch", "--config_file", config, script, *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if script in (p.info["cmdline"] or [])]
    assert not left
    return done


def test_two_processes_resume_to_the_same_bytes(checkpoint, helpdesk, commands, tmp_path):
    recipe = recipe_for("text_classification", "lora", checkpoint, helpdesk, tmp_path / "whole")
    # two steps an epoch: they stop in the middle of the second
    train = replace(TRAIN, global_batch_size=32)
    recipe = replace(recipe, train=train)
    # rank 1 is the first in the run's folder
    done = launch_two(recipe, tmp_path, before=SLOW_RANK_0, python=commands.python)
    assert done.returncode == 0, done.stderr[-2000:]

    stopped = replace(recipe, output_dir=str(tmp_path / "stopped"))
    done = launch_two(stopped, tmp_path, "SignalAt(2, rank=1)")
    assert done.returncode != 0
    assert "stopped at step 3" in done.stderr
    marker = tmp_path / "stopped" / "checkpoints" / "checkpoint-3" / MARKER
    assert json.loads(marker.read_text())["world_size"] == 2

    start = time.monotonic()
    done = launch_two(stopped, tmp_path, "SignalAt(5, 'SIGKILL', rank=1)")
    assert done.returncode != 0
    assert time.monotonic() - start < 60
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in done.stderr
    assert f"lost rank 1 on {socket.gethostname()}: its process has ended." in done.stderr
    assert "in _run_epoch" not in done.stderr  # rank 0's trace of the lost connection
    assert "resuming from checkpoint-3" in done.stdout

    with pytest.raises(RecipeError, match="world_size: the run in .* had 2, this one has 1"):
        run(stopped)
    moved = shutil.copytree(tmp_path / "stopped", tmp_path / "moved")
    run(replace(stopped, output_dir=str(moved), allow_changed=("world_size",)))
    [change] = json.loads((moved / "task.json").read_text())["changed_on_resume"]
    assert change == {"field": "world_size", "before": 2, "now": 1, "step": 4}

    done = launch_two(stopped, tmp_path, before=IN_LAST_EVALUATION)
    assert done.returncode != 0
    assert "resuming from checkpoint-4" in done.stdout
    assert "stopped in the last evaluation, with a checkpoint of step 6" in done.stderr
    assert not (tmp_path / "stopped" / "task.json").exists()
    done = launch_two(stopped, tmp_path, python=commands.python)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming from checkpoint-6" in done.stdout
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(
    checkpoint, helpdesk, commands, tmp_path
):
    recipe = recipe_for("text_classification", "full", checkpoint, helpdesk, tmp_path / "run")
    command = [commands.python, *command_for(recipe, tmp_path)[1:]]
    done = subprocess.run([*command, "FullDiskAt(3)"], capture_output=True, text=True)
    assert done.returncode == 5, done.stderr[-2000:]
    assert "checkpoint-4 could not be written" in done.stderr
    assert "MB are free there" in done.stderr
    assert "Traceback" not in done.stderr
    newest, older = all_checkpoints(tmp_path / "run" / "checkpoints")
    assert find_damage(newest) == "its writing was interrupted"
    assert find_damage(older) is None
    done = subprocess.run(command, capture_output=True, text=True)
    assert "resuming from checkpoint-2" in done.stdout
    run(replace(recipe, output_dir=str(tmp_path / "whole")))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_disk_too_small_is_told_before_the_first_step(
    checkpoint, helpdesk, tmp_path, monkeypatch, capsys
):
    import pipelines.results.disk

    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(pipelines.results.disk.shutil, "disk_usage", lambda folder: usage)
    recipe = recipe_for("text_classification", "full", checkpoint, helpdesk, tmp_path / "run")
    with pytest.raises(RecipeError, match="0 MB free; checkpoints need about 2 MB"):
        run(recipe)
    run(replace(recipe, train=replace(recipe.train, save_steps=None)))
    assert "checkpoints: about" not in capsys.readouterr().out
    enough = usage._replace(free=7_000_000)
    monkeypatch.setattr(pipelines.results.disk.shutil, "disk_usage", lambda folder: enough)
    run(replace(recipe, overwrite=True))
    assert "  checkpoints: about 2 MB, of 7 MB free" in capsys.readouterr().out


def test_evaluation_rows_that_were_trained_on_are_counted(helpdesk, tmp_path, checkpoint, capsys):
    data = shutil.copytree(helpdesk / "classify", tmp_path / "data")
    shared = (data / "test.jsonl").read_text().splitlines()[:3]
    with (data / "train.jsonl").open("a") as train:
        train.write("\n".join(shared) + "\n")
    recipe = recipe_for("text_classification", "full", checkpoint, helpdesk, tmp_path / "run")
    source = replace(recipe.task.dataset, path=str(data))
    run(replace(recipe, task=replace(recipe.task, dataset=source)))
    assert "3 of 32 evaluation rows have the input of a training row" in capsys.readouterr().out
