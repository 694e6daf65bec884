"""Tests that need a GPU are skipped without one, and the other tests never see one."""

import os
import subprocess
import sys

import pytest

from helpers.factories import ROOT

SEEN = """
import os

import pytest
import torch


@pytest.mark.gpu
def test_on_a_gpu():
    assert torch.cuda.is_available()


def test_on_the_cpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()
"""


def collected(folder, *options):
    """Run the two tests above with this project's conftest; return what pytest says at the end."""
    (folder / "test_seen.py").write_text(SEEN)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
    ]
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), *options]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("CUDA_VISIBLE_DEVICES")
    done = subprocess.run(
        [*command, *config, str(folder / "test_seen.py")],
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.returncode, done.stdout


def test_a_usual_run_hides_the_gpu(tmp_path):
    code, said = collected(tmp_path)
    assert code == 0, said
    assert "1 passed, 1 skipped" in said
    assert "needs a CUDA device" in said


@pytest.mark.gpu
def test_tests_that_need_a_gpu_see_it(tmp_path):
    code, said = collected(tmp_path, "-m", "gpu")
    assert code == 0, said
    assert "1 passed, 1 deselected" in said
