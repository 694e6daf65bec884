"""What a run sends to its trackers, and what it does not."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from helpers.callbacks import AtStep, RaiseAt, SignalAt
from helpers.factories import ROOT
from helpers.hub_process import SECRET
from helpers.resumable_runs import recipe_for, weights
from pipelines.errors import Preempted
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.training.identity import comparable
from pipelines.training.tracker_backends import TRACKERS, last_steps
from pipelines.training.tracker_checks import is_installed

NAMES = ("tensorboard", "trackio", "wandb", "mlflow")
INSTALLED = tuple(name for name in NAMES if is_installed(name))
W_AND_B_KEY = "0123456789abcdef" * 2 + "01234567"
TRAINED = [1, 2, 3, 4, 5, 6]
EVALUATED = [0, 2, 4, 6]


def needs(name):
    """Skip a test where a tracker is not installed."""
    return pytest.mark.skipif(name not in INSTALLED, reason=f"{name} is not installed")


@pytest.fixture
def recipe(checkpoint, helpdesk, tmp_path) -> Recipe:
    """A recipe of six steps that evaluates and saves every two."""
    return made(checkpoint, helpdesk, tmp_path / "runs" / "tickets", ("tensorboard",))


def made(checkpoint, helpdesk, folder, trackers) -> Recipe:
    """Return a recipe in a folder with trackers."""
    made = recipe_for("causal_lm", "lora", checkpoint, helpdesk, folder)
    train = replace(made.train, eval_steps=2, report_to=trackers)
    return replace(made, name="tickets", train=train)


class Recorded:
    """A tracker that keeps what it is told, and continues a run of the same id."""

    location = "memory"

    def __init__(self, told, run):
        self.told = told
        begun = [
            i for i, (what, value) in enumerate(told) if what == "begin" and value.id == run.id
        ]
        self.logged = last_steps(rows_of(told[begun[0] :])) if begun else {}
        told.append(("begin", run))

    def log(self, metrics, step):
        self.told.append((step, dict(metrics)))

    def close(self, ending):
        self.told.append(("close", ending))


def rows_of(told) -> list:
    """Return the steps and metrics that a tracker was told."""
    return [(step, row) for step, row in told if isinstance(step, int)]


@pytest.fixture
def told(monkeypatch) -> list:
    """What a run tells its tracker."""
    told: list = []
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda run: Recorded(told, run))
    monkeypatch.setattr("pipelines.training.tracker_checks.is_installed", lambda package: True)
    return told


# A run that is stopped, killed and resumed, in the trackers that are installed


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, checkpoint, helpdesk):
    """The folder of a run that SIGTERM stopped at step 3 and SIGKILL ended at step 5."""
    if not INSTALLED:
        pytest.skip("no tracker is installed")
    place = tmp_path_factory.mktemp("tracked")
    recipe = made(checkpoint, helpdesk, place / "runs" / "tickets", INSTALLED)
    (place / "recipe.json").write_text(recipe.to_json())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "TRACK"))}
    given = {"HF_TOKEN": SECRET, "WANDB_API_KEY": W_AND_B_KEY, "WANDB_MODE": "offline"}
    given |= {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "0"}
    for part, code in (("begin", -signal.SIGKILL), ("end", 0)):
        done = subprocess.run(
            [sys.executable, ROOT / "tests/helpers/track_runs.py", "recipe.json", "net.txt", part],
            capture_output=True,
            text=True,
            env=kept | given,
            cwd=place,
            timeout=200,
        )
        assert done.returncode == code, done.stderr[-3000:]
        assert "failed and gets no more" not in done.stdout
    return place


@needs("tensorboard")
def test_tensorboard_has_every_step_of_a_resumed_run_once(resumed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(resumed / "runs/tickets/tensorboard"))
    events.Reload()
    assert [each.step for each in events.Scalars("loss")] == TRAINED
    assert [each.step for each in events.Scalars("eval_loss")] == EVALUATED
    logged = [json.loads(line) for line in (resumed / "runs/tickets/metrics.jsonl").open()]
    assert [each.value for each in events.Scalars("loss")] == pytest.approx(
        [row["loss"] for row in logged if "loss" in row]
    )


@needs("trackio")
def test_trackio_has_every_step_of_a_resumed_run_once_in_one_local_run(resumed):
    with sqlite3.connect(resumed / "hf/trackio/gpt2-recipes.db") as store:
        rows = store.execute("SELECT run_id, run_name, step, metrics FROM metrics").fetchall()
        [(config,)] = store.execute("SELECT config FROM configs").fetchall()
    assert len({run_id for run_id, *_ in rows}) == 1
    assert {name for _, name, *_ in rows} == {rows[0][1]}
    assert rows[0][1].startswith("tickets-")
    metrics = [(step, json.loads(values)) for *_, step, values in rows]
    assert [step for step, values in metrics if "loss" in values] == TRAINED
    assert [step for step, values in metrics if "eval_loss" in values] == EVALUATED
    assert json.loads(config)["_Username"] is None  # Trackio would ask the Hub for it


@needs("mlflow")
def test_mlflow_has_every_step_of_a_resumed_run_once_and_that_it_is_finished(resumed):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{resumed}/runs/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("gpt2-recipes")
    [tracked] = client.search_runs([experiment.experiment_id])
    assert (tracked.info.run_name, tracked.info.status) == ("tickets", "FINISHED")
    history = client.get_metric_history(tracked.info.run_id, "loss")
    assert [each.step for each in history] == TRAINED
    history = client.get_metric_history(tracked.info.run_id, "eval_loss")
    assert [each.step for each in history] == EVALUATED
    assert tracked.data.params["train.learning_rate"] == "0.01"


@needs("wandb")
def test_wandb_has_the_parts_of_a_resumed_run_under_one_id(resumed):
    folders = sorted((resumed / "runs/tickets/wandb").glob("offline-run-*"))
    assert len(folders) == 3  # one a process: `wandb sync` joins them
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    for folder in (folders[0], folders[-1]):  # the other was killed before it wrote anything
        [file] = folder.glob("*.wandb")
        content = file.read_bytes()
        assert b"train.learning_rate" in content
        assert b"grad_norm" in content


def test_no_tracker_has_a_token_or_a_path_of_this_machine(resumed, checkpoint, helpdesk):
    written = [f for f in resumed.rglob("*") if f.is_file() and f.name != "recipe.json"]
    contents = {file: file.read_bytes() for file in written}
    for secret in (SECRET, W_AND_B_KEY):
        assert [str(f) for f, data in contents.items() if secret.encode() in data] == []
    sent = [
        *resumed.glob("runs/tickets/tensorboard/*"),
        *resumed.glob("hf/trackio/*.db*"),
        *resumed.glob("runs/mlflow/mlflow.db*"),
        *resumed.glob("runs/tickets/wandb/offline-*/*.wandb"),
        *resumed.glob("runs/tickets/wandb/offline-*/files/*"),
    ]
    for path in (checkpoint, helpdesk, ROOT):
        assert [str(file) for file in sent if str(path).encode() in contents[file]] == []
    found = [file for file in sent if b"causal" in contents[file].lower()]  # the recipe is there
    assert len(found) >= len(INSTALLED)


def test_trackers_on_this_machine_ask_for_no_network(resumed):
    assert not (resumed / "net.txt").exists()


def test_trackers_change_no_byte_of_the_weights_and_no_score(resumed):
    tracked, untracked = resumed / "runs/tickets", resumed / "runs/tickets-untracked"
    assert weights(tracked) == weights(untracked)
    scores = [json.loads((f / "task.json").read_text())["metrics"] for f in (tracked, untracked)]
    assert {**scores[0], "seconds": 0} == {**scores[1], "seconds": 0}


# What every tracker is told


def test_a_tracker_gets_what_metrics_jsonl_has(recipe, told):
    run(recipe)
    rows = [json.loads(line) for line in (recipe.folder / "metrics.jsonl").open()]
    sent = [{"step": step} | row for step, row in rows_of(told)]
    assert sent == rows
    assert {"loss", "grad_norm", "learning_rate"} <= sent[1].keys()
    assert told[-1] == ("close", "finished")


def test_a_tracker_gets_the_score_of_the_test_rows(recipe, told):
    source = replace(recipe.task.dataset, test_fraction=0.2, eval_split=None)
    run(replace(recipe, task=replace(recipe.task, dataset=source)))
    step, row = told[-2]
    assert step == 6
    assert "test_perplexity" in row


def test_a_tracker_gets_the_recipe_without_paths(recipe, told):
    run(recipe)
    config = told[0][1].config
    assert config["train.learning_rate"] == 0.01
    assert config["model.name_or_path"] == f"./{Path(recipe.model.name_or_path).name}"
    assert config["output_dir"] is None


def test_a_run_that_is_stopped_continues_under_the_same_id(recipe, told):
    with pytest.raises(Preempted):
        run(recipe, [SignalAt(3)])
    run(recipe)
    begun = [run for what, run in told if what == "begin"]
    assert begun[0].id == begun[1].id
    assert [each.next_step for each in begun] == [0, 5]  # stopped after step 4
    assert [ending for what, ending in told if what == "close"] == ["stopped", "finished"]


def test_a_step_that_is_made_again_is_not_logged_again(recipe, told):
    with pytest.raises(KeyError):
        run(recipe, [RaiseAt(5, "gone")])  # after step 5, with a checkpoint of step 4
    run(recipe)
    assert [step for step, row in rows_of(told) if "loss" in row] == TRAINED
    assert [step for step, row in rows_of(told) if "eval_loss" in row] == EVALUATED
    assert [ending for what, ending in told if what == "close"] == ["failed", "finished"]


def test_a_run_from_the_start_is_another_run_in_the_tracker(recipe, told):
    run(recipe)
    run(replace(recipe, overwrite=True, train=replace(recipe.train, learning_rate=1e-3)))
    begun = [run for what, run in told if what == "begin"]
    assert begun[0].id != begun[1].id
    assert [step for step, row in rows_of(told) if "loss" in row] == TRAINED * 2


def test_a_pruned_trial_is_stopped_not_failed(recipe, told):
    from pipelines.search.trial import Pruned

    class PruneAt(AtStep):
        def act(self, model):
            raise Pruned("pruned")

    with pytest.raises(optuna.TrialPruned):
        run(recipe, [PruneAt(2)])
    assert told[-1] == ("close", "stopped")


def test_the_runs_of_seeds_have_names_of_their_own_and_a_group(recipe, told):
    from pipelines.repeat import recipes_of

    for each in recipes_of(recipe, (1, 2)).values():
        run(replace(each, train=replace(each.train, max_steps=1)))
    begun = [run for what, run in told if what == "begin"]
    assert [(each.name, each.group) for each in begun] == [
        ("tickets-seed-1", "tickets"),
        ("tickets-seed-2", "tickets"),
    ]


def test_a_tracker_that_fails_does_not_end_the_run(recipe, told, monkeypatch, capsys):
    class Failing(Recorded):
        def log(self, metrics, step):
            if step == 3:
                raise OSError("the server is gone\nwith details")
            super().log(metrics, step)

    failing: list = []
    monkeypatch.setitem(TRACKERS, "mlflow", lambda run: Failing(failing, run))
    run(replace(recipe, train=replace(recipe.train, report_to=("mlflow", "tensorboard"))))
    assert "mlflow failed and gets no more metrics" in capsys.readouterr().out
    assert "with details" in (recipe.folder / "run.log").read_text()
    assert [step for step, row in rows_of(failing) if "loss" in row] == [1, 2]
    assert failing[-1] != ("close", "finished")
    assert [step for step, row in rows_of(told) if "loss" in row] == TRAINED
    assert told[-1] == ("close", "finished")


@needs("mlflow")
def test_a_database_that_is_damaged_in_the_middle_does_not_end_the_run(
    recipe, tmp_path, monkeypatch, capsys
):
    store = tmp_path / "store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")

    class Damage(AtStep):
        def act(self, model):
            for file in tmp_path.glob("store.db*"):
                file.write_bytes(b"no database" * 1000)

    run(replace(recipe, train=replace(recipe.train, report_to=("mlflow",))), [Damage(3)])
    assert "mlflow failed and gets no more metrics" in capsys.readouterr().out
    assert (recipe.folder / "task.json").is_file()


def test_only_the_first_process_has_trackers(recipe, told, monkeypatch):
    class Second:
        is_main_process = False

    monkeypatch.setattr("pipelines.training.trackers.PartialState", Second)
    run(recipe)
    assert told == []


def test_trackers_are_no_part_of_what_a_run_is(recipe):
    assert comparable(recipe) == comparable(
        replace(recipe, train=replace(recipe.train, report_to=NAMES))
    )


def test_the_last_step_of_each_metric():
    rows = [(0, ("eval_loss",)), (2, ("loss",)), (4, ("loss", "rate")), (2, ("eval_loss", "loss"))]
    assert last_steps(rows) == {"eval_loss": 2, "loss": 4, "rate": 4}
