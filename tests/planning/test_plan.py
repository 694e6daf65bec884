"""`gpt2-recipes plan`: the checks of a run, and a rehearsal of it."""

import json
import math
from dataclasses import replace

import pytest

from helpers.factories import make_tasks, method
from pipelines.errors import DataError, RecipeError
from pipelines.planning.command import plan
from pipelines.planning.plan import make_plan
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch, Tokenizer, Train
from pipelines.recipe_cli import PlanFlags

CASES = [
    ("causal_lm", "full"),
    ("text_classification", "8bit"),
    ("question_answering", "4bit"),
    ("instruction_tuning", "lora"),
    ("preference_tuning", "lora"),
]
PHASES = ["loading", "training", "evaluation", "saving"]


@pytest.fixture
def recipe(helpdesk, checkpoint, tmp_path):
    return Recipe(
        name="planned",
        task=make_tasks(helpdesk)["text_classification"],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(global_batch_size=8, num_train_epochs=2),
        output_dir=str(tmp_path / "run"),
        **method("lora"),
    )


@pytest.mark.parametrize(("task", "name"), CASES)
def test_every_task_and_method_is_rehearsed(task, name, recipe, helpdesk):
    recipe = replace(recipe, task=make_tasks(helpdesk)[task], **method(name))
    found = make_plan(recipe)
    assert not recipe.folder.exists()
    assert list(found.peak_memory) == PHASES
    assert found.peak == max(found.peak_memory.values())
    assert math.isfinite(found.rehearsal.loss)
    assert math.isfinite(found.rehearsal.metrics[found.rehearsal.metrics["primary"]])
    block = found.rehearsal.block
    assert block.gradients > 0
    assert block.optimizer >= 2 * block.gradients  # two moments, and the numbers of their steps
    assert block.activations > 0
    methods = {fit.method for fit in found.gpus}
    assert methods == {"LoRA", "8-bit", "4-bit"} | (
        {"full"} if task != "preference_tuning" else set()
    )
    json.dumps(found.to_json())


def test_a_model_from_scratch_is_planned(recipe, helpdesk):
    scratch = Scratch(size="tiny", n_layer=3, n_positions=64, tokenizer=Tokenizer(vocab_size=300))
    task = make_tasks(helpdesk)["causal_lm"]
    found = make_plan(replace(recipe, task=task, model=scratch, lora=None))
    assert found.parameters.num_layers == 3
    assert found.rehearsal.num_layers == 2
    assert {fit.method for fit in found.gpus} == {"full"}


def test_rows_steps_labels_and_lengths_are_counted(recipe):
    found = make_plan(recipe)
    train = found.splits["train"]
    assert train.rows == 64
    assert found.schedule.steps == 2 * 64 / 8
    assert sum(train.labels.values()) == 64
    assert train.tokens == pytest.approx(found.schedule.tokens / 2)  # two epochs
    assert list(train.cut_at) == [64, 128, 256]  # 256 is the model's most
    assert train.cut_at[256] == 0
    # a checkpoint has the trained parameters and two moments of each; three are there at once
    assert found.disk.checkpoints == 3 * 3 * 4 * found.parameters.num_trainable
    assert found.disk.result > 4 * found.parameters.num_trainable


def test_what_a_run_refuses_a_plan_refuses(recipe, tmp_path):
    with pytest.raises(DataError, match="label-column"):
        make_plan(replace(recipe, task=replace(recipe.task, label_column="no")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("foreign")
    with pytest.raises(RecipeError, match="no finished run"):
        make_plan(recipe)
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.fixture
def file(recipe, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(recipe.to_json())
    return path


def test_the_plan_fits_80_columns(file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plan(str(file), ["--train.max-steps", "1"], PlanFlags())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "planned: 1 process(es) on cpu"
    assert any("nothing was measured on a GPU" in line for line in lines)


def test_json_is_all_that_is_printed(file, capsys):
    plan(str(file), ["--train.max-steps", "1"], PlanFlags(json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["schedule"]["steps"] == 1
    assert found["peak_memory"]["peak"] == max(found["peak_memory"].values())
