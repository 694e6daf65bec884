"""Samples before and after training, statistics, and the report that a whole run leaves."""

import json
import os
import subprocess
from dataclasses import replace

import pytest

from helpers.callbacks import SignalAt
from helpers.factories import ROOT, TASKS
from helpers.reported_runs import read_page
from helpers.resumable_runs import recipe_for, script_for, weights
from pipelines import flow
from pipelines.data.rows import Examples
from pipelines.errors import Preempted
from pipelines.flow import run
from pipelines.hub.load import load_result
from pipelines.inference.predict import predict_examples
from pipelines.results.files import FILES, find_result_damage
from pipelines.samples import Sampler

SHORT = {"max_steps": 2, "save_steps": None}


def samples_of(folder):
    """Return the lines of samples.jsonl by when they were written."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    names = ("before", "after", "at the end")
    return {name: [each for each in lines if each["when"] == name] for name in names}


def short_recipe(task, method, checkpoint, helpdesk, folder):
    """Return a run of two steps."""
    recipe = recipe_for(task, method, checkpoint, helpdesk, folder)
    return replace(recipe, train=replace(recipe.train, **SHORT))


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_every_task_leaves_samples_statistics_and_a_report(
    task, checkpoint, helpdesk, tmp_path
):
    recipe = short_recipe(task, "lora", checkpoint, helpdesk, tmp_path / "run")
    run(recipe)
    found = samples_of(recipe.folder)
    num_rows = 5 if recipe.task.head else 3
    assert len(found["before"]) == len(found["after"]) == num_rows
    for before, after in zip(found["before"], found["after"], strict=True):
        same = ("row", "input", "reference", "run")
        assert [before[name] for name in same] == [after[name] for name in same]
        assert before["input"].strip()
    # the learning rate is high: something has changed
    outputs = [[(line["output"], line["detail"]) for line in found[when]] for when in found]
    assert outputs[0] != outputs[1]
    assert 1 <= len(found["at the end"]) <= 12
    statistics = json.loads((recipe.folder / "statistics.json").read_text())
    assert list(statistics["splits"]) == ["train", "eval"]
    assert statistics["run"] == found["after"][0]["run"]
    page = read_page(recipe.folder / "report.html")
    for section in ("outcome", "rows", "samples", "data", "machine", "recipe"):
        assert page.text(section), section
    assert " ".join(found["before"][0]["input"].split())[:20] in page.text("samples")
    assert find_result_damage(recipe.folder) == []
    assert not {"report.html", "samples.jsonl", "statistics.json"} & set(FILES)


@pytest.mark.parametrize(
    ("task", "method"), [("text_classification", "8bit"), ("instruction_tuning", "lora")]
)
def test_samples_do_not_change_a_byte_of_the_weights(
    task, method, checkpoint, helpdesk, tmp_path, monkeypatch
):
    recipe = short_recipe(task, method, checkpoint, helpdesk, tmp_path / "with")
    run(recipe)
    calls = []
    monkeypatch.setattr(Sampler, "write_before", lambda self: calls.append(self))
    without = replace(recipe, output_dir=str(tmp_path / "without"))
    run(without)
    assert len(calls) == 1
    assert samples_of(without.folder)["before"] == []
    assert weights(recipe.folder) == weights(without.folder)  # with dropout, which draws


def test_a_classifier_is_sampled_as_it_predicts(checkpoint, helpdesk, tmp_path):
    recipe = short_recipe("text_classification", "lora", checkpoint, helpdesk, tmp_path / "run")
    run(recipe)
    after = samples_of(recipe.folder)["after"]
    lines = (helpdesk / "classify" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:5]]
    predicted = predict_examples(load_result(str(recipe.folder)), Examples(rows, "rows"))
    assert [line["output"] for line in after] == [each["label"] for each in predicted]
    assert [line["reference"] for line in after] == [row["queue"] for row in rows]
    for line, row in zip(after, rows, strict=True):
        assert row["text"].startswith(line["input"])  # as much of it as the model reads


def test_the_samples_before_stay_when_a_run_resumes(checkpoint, helpdesk, tmp_path):
    recipe = recipe_for("text_classification", "lora", checkpoint, helpdesk, tmp_path / "run")
    with pytest.raises(Preempted):
        run(recipe, [SignalAt(2)])
    first = samples_of(recipe.folder)
    assert first["after"] == []
    assert not (recipe.folder / "report.html").exists()
    run(recipe)
    found = samples_of(recipe.folder)
    assert found["before"] == first["before"]
    assert len(found["after"]) == 5
    again = replace(recipe, overwrite=True)  # another run, whose samples are its own
    run(replace(again, train=replace(recipe.train, max_steps=2, seed=1)))
    renewed = samples_of(recipe.folder)
    assert {line["run"] for lines in renewed.values() for line in lines} != {
        first["before"][0]["run"]
    }
    assert len(renewed["before"]) == 5


def test_an_old_report_goes_with_its_result(checkpoint, helpdesk, tmp_path, monkeypatch):
    recipe = short_recipe("text_classification", "lora", checkpoint, helpdesk, tmp_path / "run")
    run(recipe)
    file = recipe.folder / "report.html"
    old = file.read_bytes()
    monkeypatch.setattr(flow, "try_to_report", lambda folder: None)  # as if killed before
    other = replace(recipe, overwrite=True, train=replace(recipe.train, seed=1))
    run(other)
    assert not file.exists()
    monkeypatch.undo()
    run(replace(other, overwrite=False))  # finds the finished result, whose report is missing
    assert file.is_file()
    assert file.read_bytes() != old


def test_a_disk_that_takes_no_report_does_not_fail_the_run(checkpoint, helpdesk, tmp_path, capsys):
    recipe = short_recipe("text_classification", "lora", checkpoint, helpdesk, tmp_path / "run")
    (recipe.folder / f".report.html.{os.getpid()}.tmp").mkdir(parents=True)
    run(recipe)
    assert "report.html could not be written: Is a directory" in capsys.readouterr().out
    assert (recipe.folder / "task.json").is_file()


def test_two_processes_leave_one_set_of_samples_and_a_report(
    checkpoint, helpdesk, commands, tmp_path
):
    recipe = short_recipe("instruction_tuning", "lora", checkpoint, helpdesk, tmp_path / "run")
    launcher = ["-m", "accelerate.commands.launch", "--config_file"]
    config = str(ROOT / "accelerate_configs" / "cpu_2_processes.yaml")
    script = script_for(recipe, tmp_path)[1]
    command = [commands.python, *launcher, config, script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = samples_of(recipe.folder)
    assert [len(found[when]) for when in ("before", "after")] == [3, 3]
    statistics = json.loads((recipe.folder / "statistics.json").read_text())
    assert statistics["environment"]["processes"] == 2
    assert read_page(recipe.folder / "report.html").text("samples")
