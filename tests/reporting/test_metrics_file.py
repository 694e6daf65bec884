"""metrics.jsonl has every log of a run once, whatever interrupts it."""

import json
import math
from dataclasses import replace

import pytest
from transformers import TrainerState

from helpers.callbacks import RaiseAt, SignalAt
from helpers.resumable_runs import recipe_for
from pipelines.errors import Preempted
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.step_log import MetricsFile, numbers_of

CLOCKS = ("seconds", "tokens_per_second", "memory_bytes")


def read(folder):
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_clocks(rows):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


@pytest.fixture
def recipe(checkpoint, helpdesk, tmp_path) -> Recipe:
    """Six steps, evaluated at the third, with a checkpoint every two and test rows."""
    recipe = recipe_for("text_classification", "lora", checkpoint, helpdesk, tmp_path / "whole")
    source = replace(recipe.task.dataset, test_fraction=0.2)
    return replace(
        recipe,
        task=replace(recipe.task, dataset=source),
        train=replace(recipe.train, eval_steps=3),
    )


def test_an_interrupted_run_ends_in_the_lines_of_a_whole_one(recipe, tmp_path):
    metrics = run(recipe)
    whole = read(tmp_path / "whole")
    assert [row["step"] for row in whole if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in whole if "eval_accuracy" in row] == [3, 6]
    assert whole[-1]["test_accuracy"] == metrics["accuracy"]
    assert whole[-2]["eval_accuracy"] == metrics["validation"]["accuracy"]
    assert all(row["tokens_per_second"] > 0 < row["memory_bytes"] for row in whole if "loss" in row)
    assert [row["seconds"] for row in whole] == sorted(row["seconds"] for row in whole)

    stopped = replace(recipe, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(KeyError):  # after step 3, whose log no checkpoint has
        run(stopped, [RaiseAt(3, "broken")])
    assert without_clocks(read(tmp_path / "stopped")) == without_clocks(whole)[:4]
    left = Recipe.from_file(tmp_path / "stopped" / "recipe.json")
    assert left.train == recipe.train
    with pytest.raises(Preempted):
        run(stopped, [SignalAt(4)])
    run(stopped)
    again = read(tmp_path / "stopped")
    assert without_clocks(again) == without_clocks(whole)
    assert [row["seconds"] for row in again] == sorted(row["seconds"] for row in again)


def test_a_finished_run_that_is_called_again_leaves_its_lines(recipe, tmp_path):
    run(recipe)
    before = read(tmp_path / "whole")
    run(recipe)
    assert read(tmp_path / "whole") == before


def test_numbers_of_a_log():
    logs = {
        "loss": math.nan,
        "eval_primary": "accuracy",
        "eval_accuracy": 0.5,
        "eval_runtime": 3.0,
        "eval_confidence_interval": [0, 1],
        "epoch": 1.0,
        "done": True,
    }
    assert numbers_of(logs) == {"epoch": 1.0, "loss": None, "eval_accuracy": 0.5}


def test_the_summary_of_a_whole_training_is_no_line(tmp_path):
    file = MetricsFile(tmp_path)
    state = TrainerState(global_step=2, log_history=[{"step": 1, "loss": 2.0}])
    file.on_train_begin(None, state, None)
    file.on_log(None, state, None, logs={"train_runtime": 1.0, "train_loss": 2.0})
    assert read(tmp_path) == [{"step": 1, "loss": 2.0}]
