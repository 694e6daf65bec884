"""A search from the first trial to the best result."""

import csv
import json
import shutil
import statistics
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from helpers.named_paths import paths_that_are_gone
from helpers.searches import SPACE, planned, searched
from pipelines.errors import DataError, RecipeError
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora
from pipelines.search.storage import open_storage
from pipelines.search.study import NAME
from pipelines.search.worker import work


@pytest.fixture(scope="module")
def recipe(checkpoint, helpdesk):
    return searched(checkpoint, helpdesk)


def trials_of(folder):
    study = optuna.load_study(study_name=NAME, storage=open_storage(folder, None))
    return study.get_trials()


def task_json(folder):
    return json.loads((folder / "task.json").read_text())


def test_a_search_compares_by_validation_rows_and_reports_test_rows(recipe, tmp_path, capsys):
    words = [*SPACE, "--trials", "4", "--sampler", "random"]
    work(planned(recipe, tmp_path, *words))
    output = capsys.readouterr().out
    trials = trials_of(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    for trial in trials:
        folder = tmp_path / f"trial-{trial.number:03d}"
        result = task_json(folder)
        assert result["metrics"]["accuracy"] == trial.value
        assert result["dataset"]["splits"]["reported"] == "eval"
        assert result["dataset"]["splits"]["test"]["rows"] > 0  # held out, and not looked at
        assert "validation" not in result["metrics"]
        log = (folder / "run.log").read_text()
        assert "step 1 of 4" in log
        assert "test: 6 rows, not scored" in log
        line = f"trial {trial.number} ({trial.number + 1} of 4): accuracy {trial.value:.4f}"
        assert line in output
        assert not list(folder.glob("*.safetensors"))
        assert list(trial.intermediate_values) == [2, 4]
    best = max(trials, key=lambda trial: (trial.value, -trial.number))
    reported = task_json(tmp_path / "best")
    assert reported["dataset"]["splits"]["reported"] == "test"
    assert reported["metrics"]["validation"]["accuracy"] == best.value
    assert output.count("step 1 of 4") == 2  # of the first trial and of the best recipe
    assert "importance of the parameters" in output
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == sorted(
        (trial.value for trial in trials), reverse=True
    )
    assert float(rows[0]["train.learning_rate"]) == best.params["train.learning_rate"]
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")

    assert paths_that_are_gone(tmp_path, root=tmp_path) == set()
    again = Recipe.from_file(tmp_path / "best_recipe.json")
    assert again.train.learning_rate == best.params["train.learning_rate"]
    metrics = run(replace(again, output_dir=str(tmp_path / "again")))
    del metrics["seconds"], reported["metrics"]["seconds"]
    assert metrics == reported["metrics"]


def test_the_same_command_resumes_with_more_trials_and_replaces_the_best(recipe, tmp_path, capsys):
    # by seed 0 the trial of one step is the first
    words = ["--train.max-steps", "1,30", "--train.learning-rate", "1e-2", "--sampler", "grid"]
    words += ["--seed", "0", "--metric", "loss", "--trials"]
    work(planned(recipe, tmp_path, *words, "1"))
    [first] = trials_of(tmp_path)
    assert first.params == {"train.max_steps": 1}
    work(planned(recipe, tmp_path, *words, "1"))
    output = capsys.readouterr().out
    assert "1 trials, 1 of them have ended; loss of the validation rows, lower is better" in output
    assert "holds the finished result of this run" in output
    work(planned(recipe, tmp_path, *words, "2"))
    trials = trials_of(tmp_path)
    assert [trial.params["train.max_steps"] for trial in trials] == [1, 30]
    assert trials[0].value == first.value > trials[1].value
    assert Recipe.from_file(tmp_path / "best" / "recipe.json").train.max_steps == 30
    assert task_json(tmp_path / "best")["metrics"]["validation"]["loss"] == trials[1].value


def test_a_trial_that_fails_is_told_and_the_search_goes_on(recipe, tmp_path, capsys):
    # an adapter's scale of 1e40 is infinite in fp32, and rows of 64 tokens are truncated
    space = ["--lora.lora-alpha", f"8,{10**40}", "--task.max-truncated-fraction", "1,0"]
    adapted = replace(recipe, lora=Lora(r=4))
    work(planned(adapted, tmp_path, *space, "--sampler", "grid", "--seed", "5"))
    output = capsys.readouterr().out
    trials = trials_of(tmp_path)
    assert len(trials) == 4
    for trial in trials:
        fits = trial.params["task.max_truncated_fraction"] == 1
        if fits and trial.params["lora.lora_alpha"] == 8:
            assert trial.state == TrialState.COMPLETE
            continue
        kind = "NonFiniteError" if fits else "DataError"
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["message"].startswith(f"{kind}: ")
        assert f"trial {trial.number} ({trial.number + 1} of 4): failed, {kind}: " in output
        assert kind in (tmp_path / f"trial-{trial.number:03d}" / "run.log").read_text()
    assert task_json(tmp_path / "best")["metrics"]["rows"] == 6


def test_rows_that_no_trial_can_use_end_the_search_and_the_trial_runs_again(recipe, tmp_path):
    space = ["--lora.r", "2,4", "--trials", "1", "--task.max-truncated-fraction", "0"]
    adapted = replace(recipe, lora=Lora(r=4))
    for _ in range(2):
        with pytest.raises(DataError, match="--task.max-truncated-fraction 0"):
            work(planned(adapted, tmp_path, *space))
        assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.RUNNING]


def test_a_search_without_a_score_says_why(recipe, tmp_path):
    space = ["--lora.lora-alpha", f"{10**40},{10**41}", "--trials", "2"]
    with pytest.raises(RecipeError) as caught:
        work(planned(replace(recipe, lora=Lora(r=4)), tmp_path, *space))
    [problem] = caught.value.problems
    assert "none of the 2 trials has a score: NonFiniteError: step 1" in problem.message
    assert "trial-*/run.log" in problem.message
    assert not (tmp_path / "best").exists()


def test_pruned_trials_end_early_and_leave_no_checkpoint(recipe, tmp_path, capsys):
    # so that trials differ at the second step: without learning, and with much of it
    train = replace(recipe.train, max_steps=12)
    space = ["--train.learning-rate", "1e-8:1e-1:log", "--trials", "8", "--sampler", "random"]
    words = [*space, "--prune", "median", "--metric", "loss", "--keep-trials"]
    work(planned(replace(recipe, train=train), tmp_path, *words))
    trials = trials_of(tmp_path)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    assert {trial.state for trial in trials} == {TrialState.PRUNED, TrialState.COMPLETE}
    for trial in pruned:
        last = max(trial.intermediate_values)
        before = [
            other.intermediate_values[last]
            for other in trials[: trial.number]
            if other.state == TrialState.COMPLETE
        ]
        assert trial.value == trial.intermediate_values[last] > statistics.median(before)
        assert trial.user_attrs["message"] == f"pruned at step {last} of 12"
        folder = tmp_path / f"trial-{trial.number:03d}"
        assert not (folder / "checkpoints").exists()
        assert not (folder / "task.json").exists()
    kept = [tmp_path / f"trial-{trial.number:03d}" for trial in trials if trial not in pruned]
    assert all((folder / "model.safetensors").is_file() for folder in kept)
    assert "pruned, pruned at" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def studied(recipe, tmp_path_factory):
    """The folder of a study of one trial."""
    folder = tmp_path_factory.mktemp("studied")
    work(planned(recipe, folder, *SPACE, "--trials", "1"))
    return folder


@pytest.mark.parametrize(
    ("words", "path", "message"),
    [
        (("--train.seed", "7"), "train.seed", "has 42, this command has 7"),
        (("--lora.r", "2,4"), "lora.r", "searches one value, this command 2,4"),
        (("--seed", "7"), "seed", "has 42, this command has 7"),
        (("--sampler", "random"), "sampler", "has 'tpe', this command has 'random'"),
        (("--metric", "loss"), "metric", "has 'accuracy', this command has 'loss'"),
        (("--storage", "journal"), "storage", "has a study in study.db"),
    ],
)
def test_the_study_of_another_search_is_refused(words, path, message, recipe, studied):
    if "--lora.r" in words:
        recipe = replace(recipe, lora=Lora())
    with pytest.raises(RecipeError) as caught:
        work(planned(recipe, studied, *SPACE, *words))
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert message in problems[path]
    assert len(trials_of(studied)) == 1


def test_a_study_of_other_rows_is_refused(recipe, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(recipe.task.dataset.path, data)
    source = replace(recipe.task.dataset, path=str(data))
    moved = replace(recipe, task=replace(recipe.task, dataset=source))
    words = [*SPACE, "--trials", "1"]
    work(planned(moved, tmp_path / "study", *words))
    rows = (data / "test.jsonl").read_text().splitlines(keepends=True)
    (data / "test.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(RecipeError) as caught:
        work(planned(moved, tmp_path / "study", *words))
    [problem] = caught.value.problems
    assert problem.path == "task.dataset.path"
    assert "has other rows: eval changed since it began" in problem.message
