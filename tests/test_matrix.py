"""Every task with every method trains, saves, and reloads in a new process as it was."""

import json
import os
import subprocess

import pytest
import torch

from helpers.factories import CASES, ROOT, TASKS, first_logits, make_tasks, method
from pipelines.data.load import load_splits
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train


@pytest.fixture(scope="module")
def results(tmp_path_factory, checkpoint, helpdesk, commands):
    """What each run had before saving, and what a new process loads."""
    import pipelines.flow

    folder = tmp_path_factory.mktemp("matrix")
    trained = {}
    real_save = pipelines.flow.save

    def save_and_note(trainer, run, state):
        task, tokenizer, labels = run.recipe.task, run.tokenizer, run.labels
        held_out = load_splits(task.dataset).held_out
        rows = task.features(held_out, tokenizer, labels, training=False).dataset
        logits = first_logits(task, trainer.model.eval(), tokenizer, rows[:4])
        trained[str(run.recipe.folder)] = (logits, labels)
        return real_save(trainer, run, state)

    patch = pytest.MonkeyPatch()
    patch.setattr(pipelines.flow, "save", save_and_note)
    for task, name in CASES:
        pipelines.flow.run(
            Recipe(
                name=f"{task}-{name}",
                task=make_tasks(helpdesk)[task],
                model=Model(name_or_path=str(checkpoint)),
                train=Train(max_steps=2, learning_rate=1e-2, warmup_steps=0),
                output_dir=str(folder / f"{task}-{name}"),
                **method(name),
            )
        )
    patch.undo()
    file = folder / "reloaded.pt"
    done = subprocess.run(
        [commands.python, ROOT / "tests" / "helpers" / "reload_results.py", file, *trained],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, trained, torch.load(file, weights_only=False)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_result_reloads_in_a_new_process(results, task, name):
    folder, trained, reloaded = results
    name = str(folder / f"{task}-{name}")
    (logits, labels), (loaded_logits, loaded_labels) = trained[name], reloaded[name]
    assert loaded_labels == labels
    assert bool(labels) == (task == "text_classification")
    torch.testing.assert_close(loaded_logits, logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_training_moved_the_head_and_the_adapter(results, task, name, checkpoint):
    from safetensors.torch import load_file

    folder, _, _ = results
    path = folder / f"{task}-{name}"
    if name == "full":
        tensors = load_file(path / "model.safetensors")
        before = load_file(checkpoint / "model.safetensors")
        moved = [k for k in before if k in tensors and not torch.equal(before[k], tensors[k])]
        assert moved
        return
    tensors = load_file(path / "adapter_model.safetensors")
    ups = [value for name, value in tensors.items() if "lora_B" in name]
    assert len(ups) == 2 * 4  # c_attn, attn.c_proj, c_fc, mlp.c_proj of 2 layers
    assert all(value.abs().sum() > 0 for value in ups)  # LoRA's B starts at zero
    heads = {"text_classification": "score", "question_answering": "qa_outputs"}
    if task in heads:
        (weight,) = [v for k, v in tensors.items() if k.endswith(f"{heads[task]}.weight")]
        assert weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["8bit", "4bit"])
@pytest.mark.parametrize("task", TASKS)
def test_the_base_is_quantised_and_the_head_is_not(task, name, checkpoint, tokenizer, helpdesk):
    import bitsandbytes as bnb

    from pipelines.models.build import build_model

    recipe = Recipe(
        name="a",
        task=make_tasks(helpdesk)[task],
        model=Model(name_or_path=str(checkpoint)),
        **method(name),
    )
    labels = ("a", "b", "c") if task == "text_classification" else ()
    model = build_model(recipe, tokenizer, labels)
    kind = bnb.nn.Linear8bitLt if name == "8bit" else bnb.nn.Linear4bit
    layers = [n for n, m in model.named_modules() if isinstance(m, kind)]
    assert len(layers) == 8
    assert not any(h in n for n in layers for h in ("lm_head", "score", "qa_outputs"))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    head = {"text_classification": "score", "question_answering": "qa_outputs"}.get(task)
    assert all("lora_" in n or (head is not None and head in n) for n in trainable)
    assert head is None or any(head in n for n in trainable)


def test_the_sidecar_names_labels_versions_and_score(results):
    folder, _, _ = results
    sidecar = json.loads((folder / "text_classification-8bit" / "task.json").read_text())
    assert sidecar["labels"] == sorted(sidecar["labels"])
    assert sidecar["versions"].keys() >= {"torch", "transformers", "peft"}
    metrics = sidecar["metrics"]
    assert metrics["rows"] == 32
    assert metrics["baseline"].keys() == {"majority class"}
    low, high = metrics["confidence_interval"]
    assert low <= metrics["accuracy"] <= high


def test_evaluate_gives_the_score_of_the_run(results):
    from pipelines.evaluation.evaluate import evaluate as evaluate_result

    folder, _, _ = results
    for name in (
        "causal_lm-lora",
        "text_classification-8bit",
        "question_answering-4bit",
        "instruction_tuning-8bit",
        "preference_tuning-4bit",
    ):
        recorded = json.loads((folder / name / "task.json").read_text())["metrics"]
        again = evaluate_result(folder / name)
        assert again.claimed == recorded[recorded["primary"]]
        assert again.score == pytest.approx(again.claimed, rel=1e-6)
        assert again.equal


def test_predictions_of_a_loaded_result(results, helpdesk):
    from pipelines.data.load import read_file
    from pipelines.errors import DataError
    from pipelines.hub.load import load_result
    from pipelines.inference.predict import predict_examples

    folder, _, _ = results
    rows = read_file(helpdesk / "classify" / "test.jsonl")
    unlabelled = type(rows)([{"text": row["text"]} for row in rows.rows], "rows")
    loaded = load_result(folder / "text_classification-8bit")
    found = predict_examples(loaded, unlabelled)
    hits = [guess["label"] == row["queue"] for guess, row in zip(found, rows.rows, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(loaded.metrics["accuracy"])

    rows = read_file(helpdesk / "answer" / "test.jsonl")
    answers = predict_examples(load_result(folder / "question_answering-lora"), rows)
    for answer, row in zip(answers, rows.rows, strict=True):
        assert answer["answer"] == (
            row["context"][answer["start"] : answer["end"]] if answer["answer"] else ""
        )
    with pytest.raises(DataError, match="no labels to predict"):
        predict_examples(load_result(folder / "causal_lm-lora"), rows)
