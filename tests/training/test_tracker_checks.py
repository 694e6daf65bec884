"""What is missing of a tracker is told before anything is loaded."""

import os
import subprocess
import sys

import pytest

from helpers.factories import ROOT
from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.training.tracker_checks import SWITCHES, check_trackers, is_installed

RECIPE = "helpdesk_pretrain"


def problems_of(names) -> list[str]:
    """Return the messages of a check."""
    with pytest.raises(RecipeError) as caught:
        check_trackers(names)
    return [problem.message for problem in caught.value.problems]


def typed(*words, missing=()):
    """Return the exit code, standard output and error of a command without some packages."""
    program = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    program += "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    program += "from pipelines.cli import console; console()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("verb", ["train", "repeat"])
def test_a_tracker_that_is_not_installed_is_told_before_torch_is_imported(verb):
    words = (verb, RECIPE, "--train.report-to", "tensorboard", "trackio")
    code, out, error = typed(*words, missing=("tensorboard", "trackio"))
    assert (code, out) == (2, "False\n")
    assert error.splitlines() == [
        f"--train.report-to: {name} is not installed. "
        f'Use `pip install -c constraints.txt -e ".[{name}]"`.'
        for name in ("tensorboard", "trackio")
    ]


def test_a_search_tells_so_too():
    words = ("search", RECIPE, "--train.learning-rate", "1e-4,1e-3", "--train.report-to", "mlflow")
    code, out, error = typed(*words, missing=("mlflow",))
    assert (code, out) == (2, "False\n")
    assert error.startswith("--train.report-to: mlflow is not installed.")


def test_a_tracker_that_is_not_known_is_refused_with_those_that_are(checkpoint, helpdesk, tmp_path):
    from helpers.resumable_runs import recipe_for

    recipe = recipe_for("causal_lm", "lora", checkpoint, helpdesk, tmp_path)
    text = recipe.to_json().replace('"report_to": []', '"report_to": ["tensorbord"]')
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(text)
    assert str(caught.value) == (
        "train.report_to: ('tensorbord',) is not allowed; did you mean tensorboard? "
        "Allowed: tensorboard, trackio, wandb, mlflow."
    )


def test_a_folder_is_not_a_package(tmp_path, monkeypatch):
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("some_tracker")
    assert is_installed("json")


def test_the_check_turns_telemetry_off_unless_the_user_wants_it(monkeypatch):
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    check_trackers(())
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


@pytest.mark.skipif(not is_installed("wandb"), reason="wandb is not installed")
@pytest.mark.parametrize(
    ("given", "able"),
    [
        ({}, False),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_MODE": "disabled"}, True),
        ({"WANDB_API_KEY": "0" * 40}, True),
        ({"NETRC": "netrc"}, True),
        ({"NETRC": "netrc", "WANDB_BASE_URL": "https://wandb.example.com"}, False),
    ],
)
def test_wandb_needs_a_login_or_to_be_offline(given, able, tmp_path):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    home = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = "from pipelines.training.tracker_checks import check_trackers as check; "
    program += "check(['wandb'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=kept | home | given,
        cwd=tmp_path,
    )
    assert done.returncode == (0 if able else 1)
    assert able or "set WANDB_MODE=offline to log to this machine only." in done.stderr
