"""A merged adapter is an ordinary model that says what its adapter said."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from helpers.factories import ROOT, first_logits, make_tasks
from helpers.hub_process import SECRET
from helpers.named_paths import paths_that_are_gone
from pipelines.data.load import load_splits
from pipelines.errors import PublishError, RecipeError
from pipelines.evaluation.evaluate import evaluate as evaluate_result
from pipelines.hub.load import load_result
from pipelines.hub.publish import publish, publish_finished
from pipelines.inference.loaded_model import load
from pipelines.inference.merge import merge
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import to_json_value
from pipelines.recipe.values import NF4, Int8, Lora, Model, Train
from pipelines.results.files import write_manifest

METHODS = {"lora": None, "8bit": Int8(), "4bit": NF4()}
CLASSES = {
    "causal_lm": "GPT2LMHeadModel",
    "text_classification": "GPT2ForSequenceClassification",
    "question_answering": "GPT2ForQuestionAnswering",
    "instruction_tuning": "GPT2LMHeadModel",
    "preference_tuning": "GPT2LMHeadModel",
}
TASKS = tuple(CLASSES)


@pytest.fixture(scope="module")
def merged(tmp_path_factory, checkpoint, helpdesk):
    """A folder with every adapter and, below merged/, what it was merged to."""
    from pipelines.flow import run

    folder, said = tmp_path_factory.mktemp("results"), {}
    for task in TASKS:
        for method, quantization in METHODS.items():
            name = f"{task}-{method}"
            recipe = Recipe(
                name=name,
                task=make_tasks(helpdesk)[task],
                model=Model(name_or_path=str(checkpoint)),
                quantization=quantization,
                lora=Lora(r=4, use_dora=name == "causal_lm-lora"),
                train=Train(max_steps=8, learning_rate=1e-2, warmup_steps=0),
                output_dir=str(folder / name),
            )
            run(recipe)
            said[name] = merge(folder / name, folder / "merged" / name)
    return folder, said


def logits_of(loaded):
    """Return the logits of the first evaluation rows."""
    task = loaded.recipe.task
    rows = load_splits(task.dataset).held_out
    features = task.features(rows, loaded.tokenizer, loaded.labels, training=False)
    return first_logits(task, loaded.model, loaded.tokenizer, features.dataset[:8])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_a_merged_model_gives_the_logits_of_its_adapter(merged, task, method):
    folder, said = merged
    name = f"{task}-{method}"
    model = load_result(folder / "merged" / name)
    adapter = load_result(folder / name, precision="fp32")
    assert type(model.model).__name__ == CLASSES[task]
    assert model.labels == adapter.labels
    expected, found = logits_of(adapter), logits_of(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with adapter.model.disable_adapter():
        assert (logits_of(adapter) - expected).abs().max() > 0.1  # it is no small adapter
    assert said[name].moved < 1e-5 * max(1, said[name].of)
    if method == "lora":
        assert said[name].moved_from_quantized is None
    else:
        as_trained = (logits_of(load_result(folder / name)) - expected).abs().max()
        if task == "question_answering":  # whose padding has logits too
            assert 0.01 < said[name].moved_from_quantized <= as_trained * 1.001
        else:
            assert said[name].moved_from_quantized == pytest.approx(as_trained.item(), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_its_files_are_those_of_an_ordinary_model(merged, tmp_path_factory, task, method):
    folder, _ = merged
    out = folder / "merged" / f"{task}-{method}"
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [CLASSES[task]]
    assert "quantization_config" not in config
    assert config["use_cache"] is True
    tensors = load_file(out / "model.safetensors")
    assert not [name for name in tensors if re.search("lora|base_model|modules_to_save", name)]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)  # Conv1D's
    language_model = CLASSES[task] == "GPT2LMHeadModel"
    if language_model:  # what vLLM loads: the head is the embedding
        assert "lm_head.weight" not in tensors
        assert config["tie_word_embeddings"] is True
    common = {"config.json", "model.safetensors", "recipe.json", "task.json", "tokenizer.json"}
    common |= {"tokenizer_config.json", "training_curve.png"}
    more = {"generation_config.json"} if language_model else set()
    more |= {"chat_template.jinja"} & {
        file.name for file in (folder / f"{task}-{method}").iterdir()
    }
    assert {file.name for file in out.iterdir()} == common | more
    assert str(folder) not in (out / "task.json").read_text()
    assert paths_that_are_gone(out, root=tmp_path_factory.getbasetemp()) == set()


def test_transformers_loads_it_with_its_labels(merged):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    folder, _ = merged
    out = folder / "merged" / "text_classification-8bit"
    texts = ["The hinge is broken.", "Where is my order? It is late by a week."]
    found = pipeline("text-classification", model=str(out))(texts, batch_size=2)
    loaded = load(out)
    expected = loaded.predict(texts)
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)

    out = folder / "merged" / "causal_lm-4bit"
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.lm_head.weight is model.transformer.wte.weight
    assert AutoTokenizer.from_pretrained(out).eos_token_id == model.config.eos_token_id


@pytest.mark.parametrize(
    "name",
    [
        "causal_lm-4bit",
        "text_classification-lora",
        "instruction_tuning-8bit",
        "preference_tuning-lora",
    ],
)
def test_it_is_scored_and_its_score_is_found_again(merged, name):
    folder, _ = merged
    adapter, model = load_result(folder / name), load_result(folder / "merged" / name)
    primary = adapter.metrics["primary"]
    origin = model.sidecar["merged"]
    assert origin["score_of"] == "merged"
    assert origin["adapter_metric"] == primary
    assert origin["adapter_score"] == adapter.metrics[primary]
    if model.metrics["primary"] == primary:
        assert model.metrics["baseline"] == adapter.metrics["baseline"]
        assert (model.metrics[primary] != adapter.metrics[primary]) == name.endswith("4bit")
    else:
        assert "baseline" not in model.metrics
    assert origin["lora"]["r"] == 4
    quantization = METHODS[name.split("-")[1]]
    assert origin["quantization"] == (to_json_value(quantization) if quantization else None)
    assert evaluate_result(folder / "merged" / name).equal


def test_a_merged_model_may_have_another_task_than_its_adapter(merged, tmp_path, monkeypatch):
    """As one tuned on preferences has, which are against a base that is no longer there."""
    from dataclasses import replace

    from pipelines.tasks.text_classification import TextClassification

    folder, _ = merged
    columns = {"label_column": "queue", "max_length": 32}
    monkeypatch.setattr(TextClassification, "merged", lambda task: replace(task, **columns))
    merge(folder / "text_classification-lora", tmp_path / "out")
    assert load_result(tmp_path / "out").recipe.task.max_length == 32
    assert load_result(folder / "text_classification-lora").recipe.task.max_length == 64


def test_without_its_rows_its_score_is_said_to_be_the_adapters(merged, tmp_path):
    from pipelines.hub.card import model_card
    from pipelines.hub.publish import read_publishable_result

    folder, _ = merged
    adapter = folder / "text_classification-8bit"
    merge(adapter, tmp_path / "a", rescore=False)
    recipe, sidecar = read_publishable_result(tmp_path / "a")
    assert sidecar["metrics"] == load_result(adapter).metrics
    card = model_card(recipe, sidecar, "me/merged")
    assert "These are the scores of the adapter; the merged model was not scored." in card
    recipe, sidecar = read_publishable_result(folder / "merged" / "text_classification-8bit")
    before = sidecar["merged"]["adapter_score"]
    card = model_card(recipe, sidecar, "me/merged")
    assert f"On the base as it was trained on, the adapter's accuracy was {before:.4f}." in card
    assert "LoRA, r 4, alpha 32, on all linear layers, on the base in Int8" in card
    assert "library_name: transformers" in card
    assert "base_model_relation: finetune" in card or "base_model" not in card
    assert "PeftModel" not in card


def test_rows_that_moved_away_leave_the_adapters_score(merged, tmp_path, capsys):
    import shutil

    folder, _ = merged
    adapter = shutil.copytree(folder / "causal_lm-lora", tmp_path / "adapter")
    value = json.loads((adapter / "recipe.json").read_text())
    value["task"]["dataset"]["path"] = "./elsewhere"
    (adapter / "recipe.json").write_text(json.dumps(value))
    write_manifest(adapter)
    said = merge(adapter, tmp_path / "out")
    assert said.moved < 1e-5 * said.of
    assert "this is the adapter's score" in capsys.readouterr().out
    assert load_result(tmp_path / "out").sidecar["merged"]["score_of"] == "adapter"


def test_what_cannot_be_merged_is_told_and_leaves_nothing(merged, tmp_path):
    folder, _ = merged
    adapter = folder / "text_classification-lora"
    with pytest.raises(RecipeError, match="is not an adapter, but already a whole model"):
        merge(folder / "merged" / "text_classification-lora", tmp_path / "out")
    with pytest.raises(RecipeError, match=r"OUT: .*text_classification-8bit is not empty"):
        merge(adapter, folder / "text_classification-8bit")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecipeError, match=r"OUT: .*file is a file"):
        merge(adapter, tmp_path / "file")
    with pytest.raises(RecipeError, match="not a folder"):
        merge(adapter, tmp_path / "out", base="nowhere/at-all")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_destination_is_named_as_it_was_typed(merged, tmp_path):
    folder, _ = merged
    whole = folder / "merged" / "text_classification-lora"
    with pytest.raises(RecipeError, match="^publish: HF_HUB_OFFLINE is set"):
        merge(folder / "text_classification-lora", tmp_path / "out", publish_to="local/merged")
    with pytest.raises(RecipeError, match="^REPO: HF_HUB_OFFLINE is set"):
        publish(whole, "local/merged")
    with pytest.raises(PublishError, match="^Not published: HF_HUB_OFFLINE is set"):
        publish_finished(whole, "local/merged", public=False)


def test_a_merged_model_is_published_by_the_command(hub, place, merged, commands):
    from helpers.hub_process import client

    folder, _ = merged
    arguments = ("merge", folder / "text_classification-8bit", "out", "--publish", "local/merged")
    (place / "pipelines").symlink_to(ROOT / "pipelines")
    said = client(hub, place / "home", "-m", "pipelines", *arguments, cwd=place)
    assert "moved by" in said
    assert "published: " in said
    assert "Warning" not in said
    said = commands.printed("gpt2-recipes", *arguments, cwd=place, code=2)
    assert said.startswith("OUT: out is not empty")
    files = hub.repos["models", "local/merged"].commit("main")["files"]
    assert {"model.safetensors", "config.json", "README.md"} <= files.keys()
    assert not [name for name in files if name.startswith("adapter")]
    for name in ("README.md", "task.json", "recipe.json"):
        text = (hub.folder / "blobs" / files[name]["sha256"]).read_text()
        assert str(folder) not in text
        assert SECRET not in text
