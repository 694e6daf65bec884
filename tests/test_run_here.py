"""`gpt2-recipes run`: the Accelerate config that fits the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.factories import ROOT
from pipelines.errors import RecipeError
from pipelines.run_here import VISIBLE, accelerate_command, count_gpus, fitting
from pipelines.shipped import find_file
from pipelines.train import Launcher


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that gives the machine a number of NVIDIA GPUs, by its nvidia-smi."""

    def with_gpus(number, visible=None):
        lines = "".join(f"echo 'GPU {i}: NVIDIA T4 (UUID: GPU-{i})'\n" for i in range(number))
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{lines}echo '  MIG 1g.5gb Device 0:'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv(VISIBLE, raising=False)
        if visible is not None:
            monkeypatch.setenv(VISIBLE, visible)

    return with_gpus


@pytest.mark.parametrize(
    ("there", "visible", "count"),
    [(2, None, 2), (2, "0", 1), (2, "0,1,2", 2), (2, "", 0), (2, "-1", 0), (0, None, 0)],
)
def test_gpus_are_counted_as_they_are_visible(machine, there, visible, count):
    machine(there, visible)
    assert count_gpus() == count


@pytest.mark.parametrize(
    ("there", "gpus", "config", "num_processes"),
    [
        (0, None, "cpu", None),
        (1, None, "single_gpu", None),
        (3, None, "multi_gpu", 3),
        (3, 1, "single_gpu", None),
        (3, 2, "multi_gpu", 2),
        (3, 0, "cpu", None),
    ],
)
def test_the_config_fits_the_gpus(machine, there, gpus, config, num_processes):
    machine(there)
    flags = fitting(gpus)
    assert (flags.config_file, flags.num_processes) == (Path(config), num_processes)


@pytest.mark.parametrize(
    ("there", "visible", "gpus", "message"),
    [
        (1, None, 2, "2 requested, and this machine shows 1. Use --gpus 1, or --gpus 0 for"),
        (0, None, 1, "1 requested, and this machine shows none. Use --gpus 0 for the CPU."),
        (4, "3", 2, "this machine shows 1 with CUDA_VISIBLE_DEVICES=3. Use --gpus 1, or"),
    ],
)
def test_more_gpus_than_there_are_name_the_fix(machine, there, visible, gpus, message):
    machine(there, visible)
    with pytest.raises(RecipeError) as caught:
        fitting(gpus)
    assert message in str(caught.value)


def test_the_line_of_accelerate_is_that_of_the_run(machine, monkeypatch, tmp_path):
    machine(2)
    monkeypatch.chdir(ROOT)
    file = find_file("helpdesk_pretrain", "recipes", field="RECIPE")
    line = accelerate_command(file, ["--train.seed", "3"], Launcher.of(fitting(None)))
    assert line == (
        "accelerate launch --config_file accelerate_configs/multi_gpu.yaml --num_processes 2 "
        "recipes/helpdesk_pretrain.py --train.seed 3"
    )
    line = accelerate_command(tmp_path / "recipe.json", [], Launcher.of(fitting(0)))
    assert line == (
        "accelerate launch --config_file accelerate_configs/cpu.yaml "
        f"--module pipelines.train {tmp_path}/recipe.json"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "two"), "--gpus: 'two' is not a number of GPUs."),
        (("--gpus", "0", "--lr", "1"), "--lr: unknown. Did you mean --train.learning-rate?"),
        (("--gpus", "9"), "--gpus: 9 requested, and this machine shows none with"),
    ],
)
def test_wrong_words_are_refused_before_the_run(words, message):
    command = [sys.executable, "-m", "pipelines", "run", "helpdesk_pretrain", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {VISIBLE: ""}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)


def test_a_run_on_the_cpu_ends_with_its_own_exit_code(tmp_path):
    command = [sys.executable, "-m", "pipelines", "run", "helpdesk_pretrain", "--gpus", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | paths()
    )
    assert done.returncode == 3
    assert done.stdout.startswith("accelerate launch --config_file ")
    assert done.stderr == "data/helpdesk/documents: no such file or folder.\n"


def paths():
    """Return the environment in which the package is found from another folder."""
    return {"PYTHONPATH": str(ROOT)}
