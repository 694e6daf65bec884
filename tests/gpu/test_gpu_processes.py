"""Several processes and GPUs: ranks share none, and a process takes one."""

import subprocess
import sys

import pytest
import torch

from helpers.devices import process_on
from helpers.factories import ROOT, make_tasks
from helpers.resumable_runs import recipe_for, script_for
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train

pytestmark = pytest.mark.gpu


def test_two_ranks_on_one_gpu_are_refused(checkpoint, helpdesk, tmp_path):
    recipe = recipe_for("causal_lm", "full", checkpoint, helpdesk, tmp_path / "run")
    count = torch.cuda.device_count() + 1
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "multi_gpu.yaml"), "--num_processes", str(count)]
    done = subprocess.run(
        [*command, *script_for(recipe, tmp_path)[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert f"ranks 0, {count - 1} would share the GPU " in done.stderr


def test_one_process_trains_on_one_gpu_with_the_batch_of_the_recipe(checkpoint, helpdesk, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    recipe = Recipe(
        name="one",
        task=make_tasks(helpdesk)["causal_lm"],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=2, global_batch_size=8, save_steps=None),
        output_dir=str(tmp_path / "run"),
    )
    before = torch.cuda.memory_allocated(1)
    with process_on("cuda"):
        run(recipe)
    assert torch.cuda.max_memory_allocated(1) == before
