"""A compressed result is an ordinary one, smaller, that says what was done to it."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from helpers.factories import make_tasks
from pipelines.compression.command import Compression, compress
from pipelines.errors import DataError, RecipeError
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.hub.card import model_card
from pipelines.hub.load import load_result
from pipelines.hub.publish import read_publishable_result
from pipelines.inference.loaded_model import load
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.results.files import write_manifest


def recipe_of(task, checkpoint, folder, helpdesk, **options):
    return Recipe(
        name=task.replace("_", "-"),
        task=make_tasks(helpdesk)[task],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=4, learning_rate=1e-2, warmup_steps=0, global_batch_size=8),
        output_dir=str(folder),
        **options,
    )


def rewrite(folder, name, value):
    """Write a JSON file of a result, and list it in its manifest as it is now."""
    (folder / name).write_text(json.dumps(value))
    write_manifest(folder, json.loads((folder / "task.json").read_text()))


@pytest.fixture(scope="module")
def results(checkpoint, helpdesk, tmp_path_factory):
    """An adapter that classifies, and a whole language model."""
    folder = tmp_path_factory.mktemp("compressed")
    given = {"text_classification": {"lora": Lora(r=4)}, "causal_lm": {}}
    for task, options in given.items():
        run(recipe_of(task, checkpoint, folder / task, helpdesk, **options))
    return folder


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
    for file in ("recipe.json", "task.json"):
        assert ".compress-" not in (folder / file).read_text()


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


def test_4_bit_weights_are_stored_and_checked(results, tmp_path):
    folder = tmp_path / "four"
    found = compress(results / "causal_lm", folder, Compression(bits=4))
    assert found["before"].unit == "tokens/s"
    assert found["after"].size_mb < found["before"].size_mb
    assert evaluate(folder).equal
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    config = json.loads((damaged / "config.json").read_text())
    rewrite(damaged, "config.json", config | {"n_inner": 64})
    with pytest.raises(RecipeError, match="has shape"):
        load_result(damaged)


def test_a_quantization_that_is_not_bitsandbytes_is_refused(results, small, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(results / "small", folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    rewrite(folder, "config.json", config)
    with pytest.raises(RecipeError, match="is not bitsandbytes'"):
        load_result(folder)


def test_zeros_stay_zeros_while_the_rest_recovers(results, tmp_path):
    folder = tmp_path / "sparse"
    compress(results / "causal_lm", folder, Compression(sparsity=0.5, recover_steps=3))
    weights = load_file(folder / "model.safetensors")
    sparse = weights["transformer.h.0.mlp.c_fc.weight"]
    assert (sparse == 0).float().mean() == pytest.approx(0.5, abs=0.001)
    before = load_file(results / "causal_lm" / "model.safetensors")
    moved = sparse != before["transformer.h.0.mlp.c_fc.weight"]
    assert moved[sparse != 0].any()
    assert evaluate(folder).equal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to do"),
        ({"prune_neurons": 1.5}, "1.5 is no fraction"),
        ({"sparsity": 0.0}, "0 is no fraction"),
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


def test_the_command_refuses_wrong_flags_with_one_message(results, tmp_path):
    command = [sys.executable, "-m", "pipelines", "compress", str(results / "causal_lm")]
    command += [str(tmp_path / "out"), "--prune-heads", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--prune-heads: 0.01 of 2 heads a layer is 0" in done.stderr
