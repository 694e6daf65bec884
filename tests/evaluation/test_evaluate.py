"""Loading and scoring results again: other bases, precisions, rows, metrics and harnesses."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import datasets
import evaluate
import numpy as np
import pytest
import torch

from helpers.factories import ROOT, TASKS, first_logits, make_tasks
from pipelines.data.load import load_splits, read_file
from pipelines.errors import DataError, RecipeError
from pipelines.evaluation.compare import compare
from pipelines.evaluation.evaluate import evaluate as evaluate_result
from pipelines.hub.load import load_result
from pipelines.inference.evaluate_pipeline import Pipeline
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Int8, Lora, Model, Train
from pipelines.results.files import read_manifest, write_manifest
from pipelines.results.predictions import read_predictions

CLI = ("-m", "pipelines")
METRICS = ROOT / "pipelines" / "metrics"


@pytest.fixture(scope="module")
def results(tmp_path_factory, checkpoint, helpdesk):
    """An adapter for each task."""
    from pipelines.flow import run

    folder = tmp_path_factory.mktemp("results")
    for name, task in make_tasks(helpdesk).items():
        recipe = Recipe(
            name=name,
            task=task,
            model=Model(name_or_path=str(checkpoint)),
            quantization=Int8() if name == "text_classification" else None,
            lora=Lora(r=4),
            train=Train(max_steps=8, learning_rate=1e-2, warmup_steps=0),
            output_dir=str(folder / name),
        )
        run(recipe)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 64}, "hidden_size 32, but .* has 64"),
        ({"n_layer": 1}, "num_hidden_layers 2, but .* has 1"),
        ({"n_layer": 3}, "num_hidden_layers 2, but .* has 3"),
        ({"vocab_size": 401}, "vocab_size 400, but .* has 401"),
    ],
)
def test_another_base_is_refused_with_both_values(results, checkpoint, tmp_path, change, message):
    from transformers import AutoConfig, GPT2LMHeadModel

    config = AutoConfig.from_pretrained(checkpoint)
    for name, value in change.items():
        setattr(config, name, value)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=message):
        load_result(results / "causal_lm", base=str(tmp_path))


def test_another_revision_of_the_base_is_refused(results, tmp_path):
    from pipelines.hub.load import check_base

    recorded = json.loads((results / "causal_lm" / "task.json").read_text())["base"]
    source = Model(name_or_path=recorded["name_or_path"], revision="b" * 40)
    check_base(source, recorded)  # of a folder no revision is recorded
    with pytest.raises(RecipeError, match=f"revision {'a' * 40}, but .* has {'b' * 40}"):
        check_base(source, recorded | {"revision": "a" * 40})


def test_a_base_of_the_same_shape_with_other_weights_is_refused(results, checkpoint, tmp_path):
    import shutil

    from transformers import GPT2LMHeadModel

    from pipelines import merge, predict
    from pipelines.results.base_weights import weights_sha256

    trained_again = shutil.copytree(checkpoint, tmp_path / "base")
    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] += 1
    model.save_pretrained(trained_again)
    both = f"{weights_sha256(checkpoint)}, but .* have {weights_sha256(trained_again)}"
    other, adapter = str(trained_again), results / "text_classification"
    for use in (
        lambda: load_result(results / "causal_lm", base=other),
        lambda: predict(adapter, ["A lamp"], base=other, precision="bf16"),
        lambda: merge(adapter, tmp_path / "merged", base=other),
        lambda: evaluate_result(adapter, base=other),
    ):
        with pytest.raises(RecipeError, match=f"^base: .* SHA-256 {both}"):
            use()
    assert not (tmp_path / "merged").exists()


def test_a_copy_of_the_base_on_disk_serves(results, checkpoint, tmp_path):
    import shutil

    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    loaded, other = load_result(results / "causal_lm"), None
    other = load_result(results / "causal_lm", base=str(copy))
    inputs = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        assert torch.equal(loaded.model(inputs).logits, other.model(inputs).logits)


@pytest.mark.parametrize("task", TASKS)
def test_every_run_leaves_the_results_of_its_rows(results, task):
    folder = results / task
    recipe = Recipe.from_file(folder / "recipe.json")
    sidecar = read_manifest(folder)
    rows = list(read_predictions(folder, sidecar, task))
    metrics = sidecar["metrics"]
    assert len(rows) == metrics["rows"]
    means = np.array([row.values for row in rows]).mean(0)
    found = float(recipe.task.statistic(means[None])[0])
    assert found == pytest.approx(metrics[metrics["primary"]], rel=1e-9, abs=1e-9)
    names = [row.row for row in rows]
    assert len(set(names)) == len(names)
    if task != "causal_lm":  # whose rows are blocks
        assert names[0].endswith("test.jsonl:1")


def test_a_result_compares_with_itself_in_every_task(results):
    for task in TASKS:
        (test,) = compare([str(results / task)] * 2).tests
        assert (test.value, test.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("task", ["causal_lm", "text_classification", "question_answering"])
def test_an_adapter_loads_on_its_base_in_every_precision(results, task):
    logits = {}
    for precision in ("fp32", "bf16", "8bit", "4bit"):
        loaded = load_result(results / task, precision=precision)
        rows = load_splits(loaded.recipe.task.dataset).held_out
        features = loaded.recipe.task.features(
            rows, loaded.tokenizer, loaded.labels, training=False
        )
        logits[precision] = first_logits(
            loaded.recipe.task, loaded.model, loaded.tokenizer, features.dataset[:4]
        ).float()
    scale = logits["fp32"].std()
    for precision, most in {"bf16": 0.05, "8bit": 0.05, "4bit": 0.5}.items():
        apart = (logits[precision] - logits["fp32"]).abs().mean() / scale
        assert 0 < apart < most, (precision, apart)


def test_what_is_no_result_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"has no recipe.json and no task.json"):
        load_result(tmp_path)


def test_no_pickle_and_no_code_of_a_repository_runs(results, checkpoint, tmp_path):
    import pickle
    import shutil

    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    adapter = shutil.copytree(results / "causal_lm", tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(RecipeError, match="adapter_model.bin does not belong to the result"):
        load_result(adapter)
    write_manifest(adapter)
    with pytest.raises(RecipeError, match="has no adapter_model.safetensors"):
        load_result(adapter)

    base = shutil.copytree(checkpoint, tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(RecipeError, match="cannot be loaded: .*model.safetensors"):
        load_result(results / "causal_lm", base=str(base))

    coded = shutil.copytree(checkpoint, tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "own.py").write_text(f"import os; os.mkdir({str(tmp_path / 'canary')!r})")
    with pytest.raises(RecipeError, match="config.json of the base: auto_map is not allowed"):
        load_result(results / "causal_lm", base=str(coded))
    assert not (tmp_path / "canary").exists()


def test_a_file_that_is_not_there_is_told_without_a_trace(results, commands, tmp_path):
    words = ("predict", results / "causal_lm", "nothing.jsonl")
    said = commands.printed("gpt2-recipes", *words, cwd=tmp_path, code=3)
    assert "nothing.jsonl: No such file or directory." in said


def test_a_hub_that_is_not_there_is_told_without_a_trace(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "GPT2_RECIPES_HUB_TIMEOUT": "3"}
    done = subprocess.run(
        [sys.executable, *CLI, "evaluate", "local/x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "0"} | nowhere,
    )
    assert done.returncode == 2
    assert "'local/x' is not a folder here, and http://127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_that_is_gone_is_named_and_a_copy_of_it_serves(
    results, checkpoint, commands, tmp_path
):
    import shutil

    folder = shutil.copytree(results / "causal_lm", tmp_path / "run")
    for name in ("recipe.json", "task.json", "adapter_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(str(checkpoint), "./runs/gone"))
    write_manifest(folder)
    said = commands.printed("gpt2-recipes", "evaluate", folder, cwd=tmp_path, code=2)
    assert "--base: the adapter's base, './runs/gone', is not a folder here" in said
    commands.printed("gpt2-recipes", "evaluate", folder, "--base", checkpoint, cwd=tmp_path)


def test_evaluate_takes_metrics_with_options(results, commands, tmp_path):
    folder = results / "text_classification"
    said = commands.printed(
        "gpt2-recipes", "evaluate", folder, "--metric", "f1", cwd=tmp_path, code=2
    )
    assert "--metric: f1: Target is multiclass but average='binary'" in said
    found = evaluate_result(folder, metric="f1", metric_options={"average": "macro"})
    assert found.metrics["added"]["f1"] == pytest.approx(found.metrics["macro_f1"])
    with pytest.raises(RecipeError, match="predicts no labels"):
        evaluate_result(results / "causal_lm", metric="f1")
    with pytest.raises(RecipeError, match="nowhere: no such metric here or on the Hub"):
        evaluate_result(folder, metric="nowhere")


def test_evaluate_compares_with_the_claim(results, helpdesk, commands, tmp_path):
    folder = results / "question_answering"
    said = commands.printed(
        "gpt2-recipes", "evaluate", folder, "--metric", "squad_v2", cwd=tmp_path
    )
    claimed = json.loads((folder / "task.json").read_text())["metrics"]["f1"]
    assert f"equal to the score of the run, {claimed:.4f}" in said
    assert "HasAns_f1" in said

    rows = (helpdesk / "answer" / "test.jsonl").read_text().splitlines()[:5]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows) + "\n")
    said = commands.printed(
        "gpt2-recipes", "evaluate", folder, "--data", tmp_path / "mine.jsonl", cwd=tmp_path
    )
    assert "5 rows" in said
    assert "these are not the rows of the run" in said

    sidecar = json.loads((folder / "task.json").read_text())
    sidecar["metrics"]["f1"] += 0.01
    text = (folder / "task.json").read_text()
    (folder / "task.json").write_text(json.dumps(sidecar))
    said = commands.printed("gpt2-recipes", "evaluate", folder, cwd=tmp_path, code=1)
    assert f"NOT equal: the run claims {claimed + 0.01:.6f}" in said
    (folder / "task.json").write_text(text)


def test_rows_that_are_not_here_are_told(results, tmp_path):
    import shutil

    folder = shutil.copytree(results / "causal_lm", tmp_path / "copy")
    recipe = Recipe.from_json((folder / "recipe.json").read_text())
    source = replace(recipe.task.dataset, path="./data/elsewhere")
    moved = replace(recipe, task=replace(recipe.task, dataset=source))
    (folder / "recipe.json").write_text(moved.to_json())
    write_manifest(folder)
    with pytest.raises(DataError, match="./data/elsewhere: no such .* --data FILE"):
        evaluate_result(folder)


def test_the_classification_evaluator_takes_an_adapter(results, helpdesk):
    loaded = load_result(results / "text_classification")
    rows = read_file(helpdesk / "classify" / "test.jsonl").rows
    ids = {name: i for i, name in enumerate(loaded.labels)}
    data = datasets.Dataset.from_list(
        [{"text": row["text"], "label": ids[row["queue"]]} for row in rows]
    )
    found = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=Pipeline(loaded),
        data=data,
        metric=evaluate.load(str(METRICS / "accuracy.py")),
        label_mapping=ids,
    )
    assert found["accuracy"] == pytest.approx(loaded.metrics["accuracy"])


def test_the_question_answering_evaluator_works_again(results, helpdesk):
    loaded = load_result(results / "question_answering")
    rows = read_file(helpdesk / "answer" / "test.jsonl").rows
    names = ("id", "question", "context", "answers")
    data = datasets.Dataset.from_list(
        [
            dict(zip(names, (str(i), r["question"], r["context"], r["answers"]), strict=True))
            for i, r in enumerate(rows)
        ]
    )
    pipe = Pipeline(loaded)
    found = evaluate.evaluator("question-answering").compute(
        model_or_pipeline=pipe,
        data=data,
        metric=evaluate.load(str(METRICS / "squad_v2.py")),
        squad_v2_format=True,
    )
    assert found["f1"] / 100 == pytest.approx(loaded.metrics["f1"])


def test_an_evaluation_suite_takes_an_adapter(results, helpdesk):
    loaded = load_result(results / "text_classification")
    rows = read_file(helpdesk / "classify" / "test.jsonl").rows
    ids = {name: i for i, name in enumerate(loaded.labels)}
    file = ROOT / "tests" / "helpers" / "evaluation_suite.py"
    suite = evaluate.EvaluationSuite.load(str(file))
    (task,) = suite.suite
    task.data = datasets.Dataset.from_list(
        [{"text": row["text"], "label": ids[row["queue"]]} for row in rows]
    )
    task.args_for_task |= {"metric": str(METRICS / "accuracy.py"), "label_mapping": ids}
    (found,) = suite.run(Pipeline(loaded))
    assert found["accuracy"] == pytest.approx(loaded.metrics["accuracy"])


def test_a_pipeline_answers_single_questions_and_pairs(results):
    pipe = Pipeline(load_result(results / "question_answering"))
    (answer,) = pipe(question="Which invoice is it about?", context="It is MF-55878, I think.")
    assert answer.keys() == {"answer", "start", "end", "score"}
    assert 0 < answer["score"] <= 1
    pipe = Pipeline(load_result(results / "text_classification"))
    (one,) = pipe("Hello")
    assert one == pipe([{"text": "Hello"}])[0]
    with pytest.raises(DataError, match="inputs are question, context, not text"):
        pipe(question="Who?", context="Ada.")
    assert one["label"] in pipe.loaded.labels
    with pytest.raises(DataError, match="evaluate has no evaluator for its task"):
        Pipeline(load_result(results / "causal_lm"))


def test_the_harness_scores_an_adapter_offline(results, commands, tmp_path):
    rows = [
        {"prompt": f"My order TS-{i:05d}", "good": "is late.", "bad": "zxq vvv kkk"}
        for i in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "late.yaml").write_text(f"""
task: late
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path}/rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
""")
    said = commands.printed(
        "gpt2-recipes",
        "lm-eval",
        results / "causal_lm",
        "--tasks",
        "late",
        "--include-path",
        tmp_path,
        cwd=tmp_path,
    )
    assert "late" in said
    assert "acc" in said
    wrong = commands.printed(
        "gpt2-recipes",
        "lm-eval",
        results / "causal_lm",
        "--tasks",
        "later",
        "--include-path",
        tmp_path,
        cwd=tmp_path,
        code=2,
    )
    assert "the harness knows no later" in wrong


def test_the_hub_command_serves(tmp_path):
    process = subprocess.Popen(
        [sys.executable, *CLI, "hub", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert "A Hub for trying" in process.stdout.readline()
    line = process.stdout.readline()
    assert line.strip().startswith("export HF_ENDPOINT=http://127.0.0.1:")
    process.terminate()
    process.wait(20)
