"""A compressed result is an ordinary one, smaller, that says what was done to it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from helpers.factories import make_tasks, short_recipe
from helpers.named_paths import paths_that_are_gone
from pipelines.cli import console
from pipelines.compression.command import compress
from pipelines.compression.keep_zeros import KeepZeros
from pipelines.compression.measure import measure_here
from pipelines.compression.options import Compression
from pipelines.compression.recovery import recovery
from pipelines.compression.score import score_again
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError, RecipeError
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.html_report.write import write_report
from pipelines.hub.card import model_card
from pipelines.hub.load import load_result
from pipelines.hub.publish import read_publishable_result
from pipelines.inference.loaded_model import load
from pipelines.inference.predict import predict_examples
from pipelines.models.pruning import sparsify
from pipelines.preparing.rows import load_prepared
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import Store
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Scratch, Train
from pipelines.results.files import write_manifest
from pipelines.tasks.text_classification import TextClassification
from pipelines.tasks.thresholds import best_threshold


def rewrite(folder, name, value):
    """Write a JSON file of a result, and list it in its manifest as it is now."""
    (folder / name).write_text(json.dumps(value))
    write_manifest(folder, json.loads((folder / "task.json").read_text()))


@pytest.fixture(scope="module")
def results(checkpoint, helpdesk, tmp_path_factory):
    """An adapter that classifies, and a whole language model."""
    folder, tasks = tmp_path_factory.mktemp("compressed"), make_tasks(helpdesk)
    for task, options in {"text_classification": {"lora": Lora(r=4)}, "causal_lm": {}}.items():
        run(short_recipe(tasks[task], checkpoint, folder / task, **options))
    return folder


@pytest.fixture(scope="module")
def chosen(checkpoint, tmp_path_factory):
    """A whole classifier of several labels, with weights and thresholds that were chosen."""
    folder = tmp_path_factory.mktemp("chosen")
    subjects = ("bill", "parcel", "hinge")
    rows = [{"text": f"{subjects[i % 3]} {i}", "label": subjects[: i % 4]} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TextClassification(
        dataset=DatasetSource(path=str(folder / "rows.jsonl"), eval_fraction=0.3),
        problem_type="multi_label_classification",
        class_weights="balanced",
        tune_thresholds=True,
        max_length=32,
    )
    choosing = {"eval_steps": 2, "keep": "best"}
    recipe = short_recipe(task, checkpoint, folder / "result", train=choosing)
    run(recipe)
    published = json.loads((recipe.folder / "recipe.json").read_text()) | {"push_to": "me/chosen"}
    rewrite(recipe.folder, "recipe.json", published)
    return recipe.folder


@pytest.fixture(scope="module")
def small(results):
    """The adapter, pruned, trained again towards what it was, and stored in 8 bits."""
    compression = Compression(
        prune_heads=0.5, prune_neurons=0.5, recover_steps=3, distill=True, bits=8
    )
    return compress(results / "text_classification", results / "small", compression)


def test_a_pruned_and_recovered_result_is_smaller_and_scores_equal(results, small):
    folder = results / "small"
    before, after = small["before"], small["after"]
    assert after.size_mb < before.size_mb
    assert after.speed > 0
    assert after.unit == "rows/s"
    config = json.loads((folder / "config.json").read_text())
    assert (config["n_head"], config["n_embd"], config["n_inner"]) == (1, 16, 64)
    assert config["quantization_config"]["load_in_8bit"] is True
    assert evaluate(folder).equal
    assert load_result(folder).metrics["accuracy"] == after.score


def test_a_compressed_result_says_what_was_done_and_names_no_folder_that_is_gone(results, small):
    folder = results / "small"
    sidecar = json.loads((folder / "task.json").read_text())
    record = sidecar["compressed"]
    assert record["prune_heads"] == record["prune_neurons"] == 0.5
    assert record["recover_steps"] == 3
    assert record["bits"] == 8
    assert record["before"]["size_mb"] == small["before"].size_mb
    assert record["after"]["score"] == small["after"].score
    recipe, sidecar = read_publishable_result(folder)
    card = model_card(recipe, sidecar, "me/small")
    assert "50% of the attention heads of each layer were removed" in card
    assert "trained for 3 steps afterwards, towards the model before and the labels" in card
    assert "stored in 8 bits" in card
    assert paths_that_are_gone(folder, root=results) == set()
    assert recipe.model.name_or_path == str(results / "text_classification")
    assert not (folder / "samples.jsonl").exists()  # those would be of the weights in fp32
    report = (folder / "report.html").read_text()
    assert ".compress-" not in report
    assert "small-again --prune-heads 0.5 --prune-neurons 0.5 --recover-steps 3 --distill" in report


def test_a_compressed_result_predicts_and_loads_by_transformers_alone(results, small):
    folder = results / "small"
    predicted = load(folder).predict(["my lamp is broken"])
    assert predicted[0]["label"] in load_result(folder).labels
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label[0] == load_result(folder).labels[0]


def test_weights_that_are_stored_in_8_bits_are_not_compressed_again_or_loaded_otherwise(
    results, small, tmp_path
):
    folder = results / "small"
    with pytest.raises(RecipeError, match="is stored in 8 bits already"):
        compress(folder, tmp_path / "again", Compression(prune_neurons=0.5))
    with pytest.raises(RecipeError, match="cannot be loaded in fp32"):
        load_result(folder, precision="fp32")


def test_a_recovery_chooses_weights_and_thresholds_as_the_recipe_does_and_publishes_nothing(
    chosen, tmp_path
):
    folder = tmp_path / "small"
    sparse = Compression(sparsity=0.5, recover_steps=2, recover_learning_rate=0.1, bits=4)
    found = compress(chosen, folder, sparse)
    assert found["after"].size_mb < found["before"].size_mb
    recipe = Recipe.from_file(folder / "recipe.json")
    assert (recipe.train.keep, recipe.train.eval_steps, recipe.train.max_steps) == ("best", 1, 2)
    assert recipe.task.class_weights == "balanced"
    assert recipe.task.tune_thresholds
    assert recipe.push_to is None
    sidecar = json.loads((folder / "task.json").read_text())
    assert sidecar["kept"]["keep"] == "best"
    assert sidecar["thresholds"].keys() == {"bill", "hinge", "parcel"}
    weight = load(folder).model.transformer.h[0].mlp.c_fc.weight
    zeros = dequantize_4bit(weight, weight.quant_state) == 0
    assert zeros.float().mean() >= 0.5  # those that were set to zero before the training
    write_report(folder)  # is no file of the result: as often as one likes
    assert evaluate(folder).equal
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    config = json.loads((damaged / "config.json").read_text())
    rewrite(damaged, "config.json", config | {"n_inner": 64})
    with pytest.raises(RecipeError, match="has shape"):
        load_result(damaged)


def test_zeros_stay_zeros_while_the_rest_recovers(results, helpdesk, tmp_path):
    model = load_result(results / "causal_lm").model
    sparsify(model, 0.5)
    shutil.copytree(results / "causal_lm", tmp_path / "sparse")
    model.save_pretrained(tmp_path / "sparse")
    name = "transformer.h.0.mlp.c_fc.weight"
    before = load_file(tmp_path / "sparse" / "model.safetensors")[name]
    assert (before == 0).float().mean() == pytest.approx(0.5, abs=0.001)
    task = make_tasks(helpdesk)["causal_lm"]
    run(short_recipe(task, tmp_path / "sparse", tmp_path / "recovered"), [KeepZeros()])
    after = load_file(tmp_path / "recovered" / "model.safetensors")[name]
    assert ((after == 0) == (before == 0)).all()
    assert (after != before)[after != 0].any()


def test_a_language_model_is_measured_in_tokens(results):
    found = measure_here(results / "causal_lm")
    assert (found.unit, found.metric) == ("tokens/s", "perplexity")
    assert found.score == load_result(results / "causal_lm").metrics["perplexity"]
    assert found.size_mb == (results / "causal_lm" / "model.safetensors").stat().st_size / 1e6


def test_thresholds_are_chosen_again_where_nothing_is_trained(chosen, tmp_path):
    folder = tmp_path / "sparse"
    shutil.copytree(chosen, folder)
    loaded = load_result(folder)
    sparsify(loaded.model, 0.9)
    loaded.model.save_pretrained(folder)
    write_manifest(folder)
    score_again(folder)
    again = load_result(folder)
    task = again.recipe.task
    store = Store()
    rows = check_prepared(task, load_prepared(task.dataset, store), None, store)[0].held_out
    predicted = predict_examples(again, rows)
    for label in again.labels:
        probabilities = np.array([each["scores"][label] for each in predicted])
        truth = np.array([label in row["label"] for row in rows.rows])
        expected = best_threshold(probabilities, truth)
        assert task.thresholds[label] == pytest.approx(expected, abs=1e-5)
    assert task.thresholds != loaded.recipe.task.thresholds
    assert evaluate(folder).equal


TRAIN = Train(learning_rate=1e-3, warmup_steps=50, eval_steps=40, keep="best")


@pytest.mark.parametrize(
    ("train", "options", "expected"),
    [
        (TRAIN, {"recover_steps": 100}, {"warmup_steps": 50, "eval_steps": 40, "keep": "best"}),
        (TRAIN, {"recover_steps": 40}, {"warmup_steps": 0.06, "eval_steps": 8, "keep": "best"}),
        (TRAIN, {"recover_steps": 2}, {"eval_steps": 1, "keep": "best"}),
        (replace(TRAIN, metric_for_best="loss"), {"recover_steps": 1}, {"keep": "last"}),
        (
            Train(optim="muon", learning_rate=0.02),
            {"recover_steps": 9, "recover_learning_rate": 1e-4},
            {"optim": "adamw_torch_fused", "learning_rate": 1e-4},
        ),
    ],
)
def test_nothing_in_a_recovery_waits_for_more_steps_than_it_has(train, options, expected, tasks):
    recipe = Recipe(name="long", task=tasks["causal_lm"], model=Scratch(size="tiny"), train=train)
    compression = Compression(prune_neurons=0.5, **options)
    short = recovery(recipe, Model(name_or_path="me/long"), compression).train
    assert short.max_steps == options["recover_steps"]
    assert {name: getattr(short, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("task", "optim", "message"),
    [
        ("instruction_tuning", "adamw_torch_fused", "InstructionTuning knows no teacher"),
        ("causal_lm", "muon", "the recipe's 0.02 is Muon's"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused_by_its_flags(tasks, task, optim, message):
    train = Train(optim=optim, learning_rate=0.02)
    recipe = Recipe(name="own", task=tasks[task], model=Scratch(size="tiny"), train=train)
    compression = Compression(prune_neurons=0.5, recover_steps=5, distill=task != "causal_lm")
    with pytest.raises(RecipeError, match=message):
        recovery(recipe, Model(name_or_path="me/own"), compression)


def test_a_quantization_that_is_not_bitsandbytes_is_refused(results, small, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(results / "small", folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    rewrite(folder, "config.json", config)
    with pytest.raises(RecipeError, match="is not bitsandbytes'"):
        load_result(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to do"),
        ({"prune_neurons": 1.5}, "1.5 is out of range"),
        ({"sparsity": 0.0}, "0 is out of range"),
        ({"prune_neurons": 0.5, "distill": True}, "Give --recover-steps"),
        ({"prune_neurons": 0.5, "recover_steps": 0}, "0 is below 1"),
        ({"bits": 8, "recover_steps": 5}, "nothing is pruned"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Compression(**options)


def test_a_folder_with_files_is_left_alone(results, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="is not empty"):
        compress(results / "causal_lm", tmp_path, Compression(sparsity=0.5))


def test_rows_that_are_not_here_stop_it_before_anything_is_written(results, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(results / "causal_lm", folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["task"]["dataset"]["path"] = str(tmp_path / "gone")
    rewrite(folder, "recipe.json", recipe)
    with pytest.raises(DataError, match="does not have the rows"):
        compress(folder, tmp_path / "out", Compression(sparsity=0.5))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["causal_lm", "out", "--prune-heads", "0.01"], "--prune-heads: 0.01 of 2 heads a layer"),
        (["causal_lm", "out", "--prune-neurons", "1"], "--prune-neurons: 1 is out of range"),
        (["causal_lm", "text_classification", "--bits", "4"], "OUT: text_classification is not"),
        (["causal_lm", "causal_lm/recipe.json", "--bits", "4"], "is a file. Give another folder."),
        (["causal_lm/task.json", "out", "--bits", "4"], "is a file. Give the folder of a result"),
    ],
)
def test_the_command_refuses_wrong_flags_with_one_message(
    results, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(results)
    monkeypatch.setattr("sys.argv", ["gpt2-recipes", "compress", *words])
    with pytest.raises(SystemExit, match="2"):
        console()
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (results / "out").exists()
