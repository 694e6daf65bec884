"""Workers of a search that are killed, stopped, or at work at the same time."""

import csv
import os
import random
import signal
import time
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from helpers.searches import SPACE, planned, searched, start_worker
from pipelines.recipe.recipe import Recipe
from pipelines.search.storage import FILES, open_storage
from pipelines.search.study import NAME
from pipelines.training.checkpoints import MARKER

NUM_TRIALS = 5


@pytest.fixture(scope="module")
def recipe(checkpoint, helpdesk):
    import pipelines.search.worker  # noqa: F401 - imported once, for all processes

    return searched(checkpoint, helpdesk)


def plan_of(recipe, folder, storage, sampler="random"):
    words = ("--trials", str(NUM_TRIALS), "--sampler", sampler, "--storage", storage)
    return planned(recipe, folder, *SPACE, *words)


def trials_of(folder, storage):
    study = optuna.load_study(study_name=NAME, storage=open_storage(folder, storage))
    return study.get_trials()


def table_of(folder) -> dict:
    with (folder / "trials.csv").open() as file:
        return {row.pop("trial"): row for row in csv.DictReader(file)}


def ended(process, seconds=120) -> int:
    process.join(seconds)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start_worker(plan_of(recipe, folder, "sqlite"), folder / "output.txt")
    assert ended(process) == 0, (folder / "output.txt").read_text()
    return folder


def check_same_trials(folder, storage, uninterrupted):
    """Check that each trial ran to its end, once, with the values and score it always has."""
    trials = trials_of(folder, storage)
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    found, expected = table_of(folder), table_of(uninterrupted)
    for row in [*found.values(), *expected.values()]:
        del row["seconds"]
    assert found == expected
    best = (folder / "best" / "model.safetensors").read_bytes()
    assert best == (uninterrupted / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("storage", list(FILES))
@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_search_that_is_killed_ends_with_the_same_trials(
    storage, num_kills, recipe, uninterrupted, tmp_path
):
    plan, output = plan_of(recipe, tmp_path, storage), tmp_path / "output.txt"
    draw = random.Random(f"{storage} {num_kills}")
    seconds = sum(float(row["seconds"]) for row in table_of(uninterrupted).values())
    for _ in range(num_kills):
        process = start_worker(plan, output)
        time.sleep(0.3 + draw.random() * 1.5 * seconds / num_kills)
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) in (-signal.SIGKILL, 0)
    assert ended(start_worker(plan, output)) == 0, output.read_text()
    check_same_trials(tmp_path, storage, uninterrupted)


@pytest.mark.parametrize("storage", list(FILES))
def test_two_workers_share_the_trials_of_a_study(storage, recipe, uninterrupted, tmp_path):
    plan = plan_of(recipe, tmp_path, storage)
    outputs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    workers = [start_worker(plan, output) for output in outputs]
    assert [ended(each) for each in workers] == [0, 0], [each.read_text() for each in outputs]
    texts = [each.read_text() for each in outputs]
    check_same_trials(tmp_path, storage, uninterrupted)
    ran = [
        [number for number in range(NUM_TRIALS) if f"trial {number} (" in text] for text in texts
    ]
    assert sorted(ran[0] + ran[1]) == list(range(NUM_TRIALS))
    assert ran[0]
    assert ran[1]
    assert sum("training the recipe of trial" in text for text in texts) == 1


def test_a_worker_takes_up_the_trial_of_another_that_was_killed(recipe, uninterrupted, tmp_path):
    plan, output = plan_of(recipe, tmp_path, "sqlite"), tmp_path / "output.txt"
    process = start_worker(plan, output)
    while not (tmp_path / "trial-001" / "run.log").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    states = [trial.state for trial in trials_of(tmp_path, "sqlite")]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]
    assert ended(start_worker(plan, output)) == 0, output.read_text()
    check_same_trials(tmp_path, "sqlite", uninterrupted)


def test_a_new_best_replaces_the_one_whose_training_was_killed(recipe, tmp_path):
    # by seed 0 the trial that learns nothing is the first
    train = replace(recipe.train, max_steps=30)
    words = ["--train.learning-rate", "1e-9,1e-2", "--sampler", "grid", "--seed", "0"]
    plans = [
        planned(replace(recipe, train=train), tmp_path, *words, "--metric", "loss", "--trials", n)
        for n in "12"
    ]
    output = tmp_path / "output.txt"
    process = start_worker(plans[0], output)
    while not (tmp_path / "best" / "checkpoints" / "checkpoint-4" / MARKER).exists():
        assert process.is_alive(), output.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert ended(start_worker(plans[1], output)) == 0, output.read_text()
    rates = [trial.params["train.learning_rate"] for trial in trials_of(tmp_path, "sqlite")]
    assert rates == [1e-9, 1e-2]
    best = Recipe.from_file(tmp_path / "best" / "recipe.json")
    assert best.train.learning_rate == 1e-2


def test_a_signal_stops_a_search_that_the_same_command_resumes(recipe, uninterrupted, tmp_path):
    plan, output = plan_of(recipe, tmp_path, "sqlite"), tmp_path / "output.txt"
    process = start_worker(plan, output)
    while not (tmp_path / "trial-001" / "run.log").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 75
    assert "run the same command again to resume" in output.read_text()
    assert ended(start_worker(plan, output)) == 0, output.read_text()
    check_same_trials(tmp_path, "sqlite", uninterrupted)
