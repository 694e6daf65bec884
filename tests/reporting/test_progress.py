"""What a run shows while it works: phases, live lines, JSON lines, and its last screen."""

import json
import os
import pty
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from helpers.factories import ROOT
from helpers.resumable_runs import recipe_for, script_for
from pipelines.console import console, json_lines, say
from pipelines.recipe.values import Model
from pipelines.reporting import progress as module
from pipelines.reporting.last_screen import next_commands
from pipelines.reporting.progress import RunProgress
from pipelines.training.hyperparameters import RecipeOnResume
from pipelines.training.loaders import WithRowNumbers
from pipelines.training.throughput import Throughput

LIVE = """
import time
from pipelines.console import say
from pipelines.reporting.progress import RunProgress
with RunProgress() as progress:
    with progress.phase("training", "training"):
        for step in range(1, 5):
            progress.advance(step, total=4, status=f"loss 0.{step}")
            time.sleep(0.4)
            with progress.phase("evaluation", "evaluating 7 rows", total=1):
                time.sleep(0.4)
            say(f"step {step}: accuracy")
"""


def clock(monkeypatch, *times):
    """Let the clock of progress read one time after the other."""
    readings = iter(times)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(readings))


def test_a_phase_is_charged_without_the_phases_inside_it(monkeypatch):
    clock(monkeypatch, 0, 1, 3, 7, 8, 8)
    progress = RunProgress()
    with progress.phase("training"), progress.phase("evaluation"):
        pass
    # training from 1 to 3 and from 7 to 8, evaluation from 3 to 7
    assert progress.timing() == {"training": 3, "evaluation": 4}


def test_a_phase_is_charged_where_it_ends_in_an_error(monkeypatch):
    clock(monkeypatch, 0, 1, 5, 9)
    progress = RunProgress()
    with pytest.raises(KeyError), progress.phase("reading"):
        raise KeyError
    assert progress.timing() == {"reading": 4}


def test_a_phase_that_takes_long_is_announced_once(monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    progress = RunProgress()
    with progress.phase("reading", "reading rows"):
        time.sleep(0.3)
    with progress.phase("encoding", "tokenising"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().out == "  reading rows\n"


def test_a_terminal_has_live_lines_and_keeps_its_cursor():
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-c", LIVE], stdout=slave, stderr=slave, cwd=ROOT, env=environment
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 65536):
                shown += part
        except OSError:  # the end of a terminal
            pass
    os.close(master)
    assert process.returncode == 0
    text = shown.decode()
    for expected in ("training", "4/4", "loss 0.4", "evaluating 7 rows", "step 4: accuracy"):
        assert expected in text
    assert "\x1b[?25l" not in text  # hides the cursor


def test_json_lines_have_time_message_and_fields_and_no_secrets(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-mine")
    with json_lines(True):
        say("  step 1: [loss] a-secret-of-mine " + "long " * 40, {"event": "log", "step": 1})
        console().print("plain", 7)
    say("  text again")
    first, second, text = capsys.readouterr().out.splitlines()
    assert json.loads(first).keys() == {"time", "message", "event", "step"}
    assert json.loads(first)["message"] == "step 1: [loss] hf_*** " + ("long " * 40).strip()
    assert json.loads(second)["message"] == "plain 7"
    assert text == "  text again"


def test_every_line_of_a_run_for_machines_is_json(checkpoint, helpdesk, tmp_path):
    recipe = recipe_for("text_classification", "lora", checkpoint, helpdesk, tmp_path / "run")
    command = script_for(replace(recipe, log_format="json"), tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    phases = [each["phase"] for each in events if each.get("event") == "phase"]
    assert phases[:5] == ["reading", "encoding", "model", "samples", "training"]
    logs = [each for each in events if each.get("event") == "log"]
    assert [each["step"] for each in logs] == [1, 2, 3, 4, 5, 6]
    assert all(each["seconds_left"] >= 0 for each in logs)
    [finished] = [each for each in events if each.get("event") == "finished"]
    sidecar = json.loads((tmp_path / "run/task.json").read_text())
    assert finished["metrics"]["accuracy"] == sidecar["metrics"]["accuracy"]
    assert sidecar["timing"].keys() == {
        "reading", "encoding", "model", "samples", "training", "evaluation", "saving",
    }  # fmt: skip
    assert 0 < sum(sidecar["timing"].values()) <= sidecar["metrics"]["seconds"]


def test_the_speed_is_of_the_tokens_and_seconds_since_the_last_log(monkeypatch):
    # training from 10 on; the first log at 12, after 3 + 5 tokens; an evaluation from 12 to 20;
    # the second log at 24, after 12 tokens
    clock(monkeypatch, 0, 10, 10, 10, 12, 12, 20, 24, 25)
    progress = RunProgress()
    speed = Throughput(progress)
    state = TrainerState(log_history=[{"step": 4, "seconds": 100.0}])
    with progress.phase("training"):
        speed.on_train_begin(TrainingArguments(), state, TrainerControl())
        speed.tokens = [torch.tensor([3]), torch.tensor([5])]
        assert speed.of_steps(lambda tokens: tokens)["tokens_per_second"] == 4
        with progress.phase("evaluation"):
            pass
        speed.tokens = [torch.tensor([12])]
        assert speed.of_steps(lambda tokens: tokens)["tokens_per_second"] == 3


def test_a_batch_counts_the_tokens_of_its_rows():
    collate = WithRowNumbers(lambda rows: {}, lambda row: len(row["input_ids"]))
    batch = collate([{"input_ids": [1, 2, 3], "row": 8}, {"input_ids": [4], "row": 2}])
    assert {name: values.tolist() for name, values in batch.items()} == {
        "num_tokens": [3, 1],
        "row": [8, 2],
    }


@pytest.mark.parametrize(("steps", "between"), [(40, 1), (1000, 10), (1_000_000, 50)])
def test_a_run_has_about_a_hundred_logs_at_most_fifty_steps_apart(steps, between, tmp_path):
    state = TrainerState(max_steps=steps)
    arguments = TrainingArguments(str(tmp_path), logging_steps=0.01)
    RecipeOnResume().on_train_begin(arguments, state, TrainerControl())
    assert state.logging_steps == between


def test_the_commands_after_a_run_are_those_of_its_task_and_method(checkpoint, helpdesk, tmp_path):
    def verbs(task, name, **changes):
        recipe = recipe_for(task, name, checkpoint, helpdesk, tmp_path / "run")
        commands = next_commands(replace(recipe, **changes))
        return [command.replace(str(tmp_path), "").split()[1:] for command in commands]

    assert verbs("causal_lm", "full") == [
        ["evaluate", "/run"],
        ["generate", "/run", "TEXT"],
        ["publish", "/run", "USER/NAME"],
    ]
    assert verbs("text_classification", "lora", push_to="me/sorted") == [
        ["evaluate", "/run"],
        ["predict", "/run", "FILE.csv"],
        ["merge", "/run", "/run-merged"],
        ["evaluate", "me/sorted"],
    ]
    local = ["publish", "/run", "USER/NAME", "--with-base", "USER/BASE"]
    assert verbs("text_classification", "lora")[-1] == local
    hub = verbs("text_classification", "lora", model=Model(name_or_path="openai-community/gpt2"))
    assert hub[-1] == local[:3]
