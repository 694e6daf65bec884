"""run.log has what a run printed and what ended it, without secrets."""

import subprocess
from dataclasses import replace

import pytest

from helpers.hub_process import SECRET
from helpers.resumable_runs import command_for, recipe_for
from pipelines.errors import RecipeError
from pipelines.flow import run
from pipelines.log import FILE, scrubbed


def test_an_error_of_ours_is_told_in_lines_and_logged_whole(
    checkpoint, helpdesk, commands, tmp_path
):
    recipe = recipe_for("text_classification", "full", checkpoint, helpdesk, tmp_path / "run")
    _, *words = command_for(recipe, tmp_path, f"RaiseAt(1, 'token {SECRET}')")
    done = subprocess.run([commands.python, *words], capture_output=True, text=True, timeout=200)
    log = (tmp_path / "run" / FILE).read_text()
    assert done.returncode == 1
    assert "KeyError: 'token hf_***'" in done.stderr
    assert f"The whole trace is in {tmp_path / 'run' / FILE}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in log
    assert "on_step_begin" in log
    assert "step 1 of 6: loss" in log
    assert SECRET not in log + done.stdout + done.stderr


def test_the_log_of_a_run_that_another_refuses_stays_its_own(checkpoint, helpdesk, tmp_path):
    from pipelines.results.lock import lock_run_folder

    recipe = recipe_for("text_classification", "full", checkpoint, helpdesk, tmp_path / "run")
    run(replace(recipe, train=replace(recipe.train, max_steps=1)))
    log = (tmp_path / "run" / FILE).read_text()
    assert "resumed: accuracy" in log
    with lock_run_folder(tmp_path / "run"), pytest.raises(RecipeError, match="is running in"):
        run(recipe)
    assert (tmp_path / "run" / FILE).read_text() == log


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://jo:secret@mlflow.example.com/api", "https://***@mlflow.example.com/api"),
        ("https://mlflow.example.com/a:b@c", "https://mlflow.example.com/a:b@c"),
        ("the key key-of-jo is wrong", "the key *** is wrong"),
    ],
)
def test_secrets_of_trackers_are_not_shown(text, shown, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "key-of-jo")
    assert scrubbed(text) == shown
