"""Batch 8, batch 1 accumulated 8 times and batch 4 on 2 processes are one and the same step."""

import json
import subprocess
from dataclasses import replace

import pytest

from helpers import engine_runs
from helpers.factories import (
    CASES,
    ROOT,
    classified,
    make_tasks,
    make_tasks_worth_packing,
    method,
)
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train

# In training on a CPU bitsandbytes multiplies by the dequantised weights: nothing of a batch is
# quantised, so that 8 and 4 bits need no other tolerance.
TOLERANCE = 1e-5


def launch(config: str, recipes: dict[str, Recipe], folder, python) -> dict[str, list[dict]]:
    """Run tests/helpers/train_steps.py and return its logs."""
    folder.mkdir()
    given, found = folder / "recipes.json", folder / "logs.json"
    given.write_text(json.dumps({k: json.loads(r.to_json()) for k, r in recipes.items()}))
    command = [python, "-m", "accelerate.commands.launch", "--config_file"]
    command += [
        str(ROOT / "accelerate_configs" / config),
        str(ROOT / "tests" / "helpers" / "train_steps.py"),
    ]
    done = subprocess.run(
        [*command, str(given), str(found)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(found.read_text())


APART = ("documents_apart", "full")
RECOMPUTED = ("causal_lm full", "text_classification lora")
SCALED = ("scaled_logits", "full")
WEIGHTED = [
    ("weighted_labels", "full"),
    ("weighted_label_sets", "full"),
    ("smoothed_spans", "full"),
]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory, tokenizer):
    """A model that scales its logits after the head, from which its loss is then taken."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model("granite", logits_scaling=8.0, initializer_range=0.2, **sizes)
    folder = tmp_path_factory.mktemp("scaled")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weighted_tasks(tasks, folder):
    """Return tasks of WEIGHTED, on rows of which few have the label b."""
    labels, answers = tasks["text_classification"], tasks["question_answering"]
    options = {"class_weights": "balanced", "label_smoothing": 0.1}
    found = {"smoothed_spans": replace(answers, label_smoothing=0.1)}
    for name, as_label, several in (
        ("weighted_labels", str, {}),
        ("weighted_label_sets", list, {"problem_type": "multi_label_classification"}),
    ):
        file = folder / f"{name}.jsonl"
        rows = (classified(i) | {"label": as_label("b" if i % 9 == 4 else "a")} for i in range(40))
        file.write_text("\n".join(map(json.dumps, rows)))
        source = replace(labels.dataset, path=str(file))
        found[name] = replace(labels, dataset=source, **options, **several)
    return found


@pytest.fixture(scope="module")
def logs(tmp_path_factory, checkpoint, scaled, helpdesk, commands):
    """The logs of every task and method in the three layouts."""
    folder = tmp_path_factory.mktemp("equivalence")
    tasks = make_tasks_worth_packing(helpdesk, folder)
    tasks |= weighted_tasks(tasks, folder)
    tasks[APART[0]] = replace(tasks["causal_lm"], packing="bfd_split")
    base = {
        f"{task} {name}": Recipe(
            name="steps",
            task=tasks[task],
            model=Model(name_or_path=str(checkpoint)),
            train=Train(
                learning_rate=1e-3,
                max_steps=3,
                warmup_steps=0,
                global_batch_size=8,
                per_device_train_batch_size=8,
                logging_steps=1,
                max_grad_norm=1e9,
            ),
            output_dir=str(folder / "out"),
            **method(name),
        )
        for task, name in [*CASES, APART, *WEIGHTED]
    }
    unscaled = base["causal_lm full"]
    base[" ".join(SCALED)] = replace(unscaled, model=Model(name_or_path=str(scaled)))
    accumulated = {
        f"{name} accumulated": replace(
            recipe, train=replace(recipe.train, per_device_train_batch_size=1)
        )
        for name, recipe in base.items()
    }
    recomputed = {
        f"{name} recomputed": replace(
            base[name],
            train=replace(
                base[name].train, activation_checkpointing=True, per_device_train_batch_size=2
            ),
        )
        for name in RECOMPUTED
    }
    found = launch("cpu.yaml", base | accumulated, folder / "one", commands.python)
    two = launch("cpu_2_processes.yaml", base | recomputed, folder / "two", commands.python)
    return found | {f"{name} two": rows for name, rows in two.items()}


@pytest.mark.parametrize(("task", "name"), [*CASES, APART, SCALED, *WEIGHTED])
@pytest.mark.parametrize("layout", ["accumulated", "two"])
def test_loss_and_gradient_norm_do_not_depend_on_the_layout(logs, task, name, layout):
    whole, split = logs[f"{task} {name}"], logs[f"{task} {name} {layout}"]
    assert len(whole) == len(split) == 3
    assert {row["world_size"] for row in split} == {2 if layout == "two" else 1}
    if (task, name) in WEIGHTED or task in ("text_classification", "question_answering"):
        assert whole[0]["packed"] > 1
        assert split[0]["packed"] or layout == "accumulated"  # a row at a time
    assert_equal_steps(whole, split)


def assert_equal_steps(expected, found):
    """Compare the logged steps of two runs."""
    for one, two in zip(expected, found, strict=True):
        for value in ("loss", "grad_norm"):
            assert two[value] == pytest.approx(one[value], rel=TOLERANCE), value


@pytest.mark.parametrize("name", RECOMPUTED)
def test_two_processes_that_compute_activations_again_make_the_same_steps(logs, name):
    assert_equal_steps(logs[name], logs[f"{name} recomputed two"])


def test_smoothing_changes_the_loss_of_a_run(logs):
    smoothed, plain = (logs[f"{name} full"][0] for name in ("smoothed_spans", "question_answering"))
    assert abs(smoothed["loss"] - plain["loss"]) > 1e-3


def test_two_processes_reach_the_scores_of_one(checkpoint, helpdesk, commands, tmp_path):
    """Whole runs, with what happens before training, on 15 rows, which 2 processes cannot halve."""
    from pipelines.evaluation.evaluate import evaluate as evaluate_result
    from pipelines.flow import run

    recipes = []
    for task, given in make_tasks(helpdesk).items():
        source = replace(given.dataset, max_eval_rows=15)
        train = Train(
            max_steps=3, learning_rate=1e-2, global_batch_size=8, per_device_eval_batch_size=4
        )
        recipes.append(
            Recipe(
                name=task,
                task=replace(given, dataset=source),
                model=Model(name_or_path=str(checkpoint)),
                train=train,
                output_dir=str(tmp_path / task),
                **method("lora"),
            )
        )
    config = ROOT / "accelerate_configs" / "cpu_2_processes.yaml"
    runs = [(recipe,) for recipe in recipes]
    done = engine_runs.launch(config, runs, tmp_path, python=commands.python)
    assert done.returncode == 0, done.stderr[-3000:]
    for recipe in recipes:
        claimed = json.loads((recipe.folder / "task.json").read_text())["metrics"]
        evaluation = evaluate_result(recipe.folder)
        assert evaluation.equal
        alone = run(replace(recipe, output_dir=f"{recipe.output_dir}-alone"))
        for found in (evaluation.metrics, alone):
            for name, value in found.items():
                if isinstance(value, float) and name != "seconds":
                    assert value == pytest.approx(claimed[name], rel=1e-4, abs=1e-6), name
        assert alone["baseline"] == pytest.approx(claimed["baseline"], rel=1e-5)
