"""A run that trains in bfloat16 reports a score that its result gives in fp32."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from helpers.factories import TASKS, method, short_recipe
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.hub.load import load_result


@pytest.fixture
def bfloat16(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture
def recipe_of(tasks, checkpoint):
    """Return a recipe of a task by its name, and a folder."""
    return lambda name, folder, **options: short_recipe(tasks[name], checkpoint, folder, **options)


@pytest.mark.parametrize(
    ("task", "name"),
    [*((task, "lora") for task in TASKS), ("text_classification", "8bit"), ("causal_lm", "full")],
)
def test_the_score_of_a_run_in_bfloat16_is_found_again_in_fp32(
    task, name, recipe_of, tmp_path, bfloat16, monkeypatch
):
    train = {"eval_steps": 4}
    recipe = recipe_of(task, tmp_path / "run", train=train, **method(name))
    metrics = run(recipe)
    log = [json.loads(line) for line in (recipe.folder / "metrics.jsonl").read_text().splitlines()]
    in_training = next(
        row["eval_loss"] for row in log if row.get("step") == 4 and "eval_loss" in row
    )
    assert in_training != metrics["loss"]  # it was in bfloat16
    assert in_training == pytest.approx(metrics["loss"], rel=0.02)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    AcceleratorState._reset_state()
    assert evaluate(recipe.folder).equal


def test_a_result_is_scored_in_fp32_also_where_the_process_was_launched_in_bfloat16(
    recipe_of, tmp_path, monkeypatch
):
    recipe = recipe_of("causal_lm", tmp_path / "run")
    run(recipe)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    assert evaluate(recipe.folder).equal
    AcceleratorState._reset_state()


def test_a_result_is_loaded_on_the_device_of_the_process(recipe_of, tmp_path, monkeypatch):
    recipe = recipe_of("causal_lm", tmp_path / "run")
    run(recipe)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # with a config that says: CPU
    assert load_result(recipe.folder).model.device.type == "cpu"
