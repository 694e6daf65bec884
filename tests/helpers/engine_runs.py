"""Short runs by the engines of Accelerate, and their comparison with those of one process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from helpers.factories import ROOT, make_tasks, method
from pipelines.data.source import DatasetSource
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train

STEPS = 6
AGAIN = "-recomputed"
RECOMPUTED = ("causal_lm-full", "text_classification-lora")
"""Recipes that are trained with activation checkpointing, too."""
LOSS, NORM, RATE, WEIGHTS = 1e-5, 1e-5, 1e-9, 1e-5
"""How far a run may be from that of one process: relative differences, and one of weights."""


def make_recipes(cases, checkpoint, odd_checkpoint, helpdesk):
    """Return a recipe of each task and method: cosine and odd for "full", linear and even else."""
    made = {}
    for task, name in cases:
        given = make_tasks(helpdesk)[task]
        odd = name == "full"
        made[f"{task}-{name}"] = Recipe(
            name=task,
            task=replace(given, dataset=replace(given.dataset, max_eval_rows=15)),
            model=Model(name_or_path=str(odd_checkpoint if odd else checkpoint)),
            train=Train(
                max_steps=STEPS,
                learning_rate=1e-3,
                lr_scheduler_type="cosine" if odd else "linear",
                min_learning_rate=1e-4 if odd else 0.0,
                global_batch_size=8,
                per_device_train_batch_size=2,
                per_device_eval_batch_size=4,
                warmup_steps=0,
                save_steps=2,
                logging_steps=1,
                eval_steps=3,
            ),
            **method(name),
        )
    return made


def recomputed(recipes):
    """Return the recipes of RECOMPUTED with activation checkpointing."""
    trains = {
        name: replace(recipes[name].train, activation_checkpointing=True) for name in RECOMPUTED
    }
    return {name + AGAIN: replace(recipes[name], train=train) for name, train in trains.items()}


def interrupted(recipes):
    """Return runs that end after five steps, and are resumed; RECOMPUTED count what they save."""
    return [
        (recipe, *["CountSaved()"] * (name.removesuffix(AGAIN) in RECOMPUTED), "EndAfter(5)")
        for name, recipe in recipes.items()
    ]


def streamed(recipe, folder):
    """Return a recipe whose rows are a stream of four files, read in two lanes by workers."""
    source = recipe.task.dataset
    rows = (Path(source.path) / "train.jsonl").read_text().splitlines(keepends=True)
    for index in range(4):
        (folder / f"train-0000{index}-of-00004.jsonl").write_text("".join(rows[index::4]))
    source = DatasetSource(path=str(folder), streaming=True, max_eval_rows=4, num_lanes=2)
    task = replace(recipe.task, dataset=source)
    return replace(recipe, task=task, train=replace(recipe.train, dataloader_num_workers=1))


def placed(recipes, folder):
    """Return recipes with a folder each."""
    return {name: replace(each, output_dir=str(folder / name)) for name, each in recipes.items()}


def launch(
    config,
    runs,
    place,
    *,
    python=sys.executable,
    env=os.environ,
    machine=("--main_process_port", "0"),
):
    """Do runs by an engine, one after the other, in a folder; return the finished process.

    A run is a recipe with calls of tests/helpers/callbacks.py; `machine` are the launcher's flags.
    `python` may be that of a CommandServer, whose ranks need not import the libraries.
    """
    place.mkdir(exist_ok=True)
    given = place / "runs.json"
    given.write_text(json.dumps([[recipe.to_json(), *calls] for recipe, *calls in runs]))
    script = ROOT / "tests" / "helpers" / "run_engine.py"
    command = [python, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [*command, *machine, str(script), str(given)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=place,
        env={**env, "PYTHONPATH": paths},
    )


def steps_of(folder):
    """Return what was logged of each step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "grad_norm" in line]


def weights_of(folder):
    """Return the tensors of a result, without those whose gradient is zero.

    A number added to all keys changes no attention; one added to the logits of all positions, or a
    vector to the last states of all, no answer. AdamW divides the rounding of such a gradient by
    its own size.
    """
    [file] = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("attn.c_attn.bias"):  # of queries, keys and values
            third = len(tensor) // 3
            tensor[third : 2 * third] = 0
        of_answers = "qa_outputs.bias" in tensors and name == "transformer.ln_f.bias"
        if of_answers or name.endswith("qa_outputs.bias"):
            tensor[:] = 0
    return tensors


def assert_recomputed(one_process, folder, name, **tolerances):
    """Compare a run that computes activations again with one process that keeps them.

    Of a run under the same engine, each process saves more than twice the bytes.
    """
    assert_equal_results(one_process / name, folder / (name + AGAIN), **tolerances)
    for rank in (0, 1):
        kept = int((folder / name / f"saved-{rank}").read_text())
        again = int((folder / (name + AGAIN) / f"saved-{rank}").read_text())
        assert 0 < again < kept / 2


def assert_equal_results(expected, found, *, loss=LOSS, norm=NORM, weights=WEIGHTS):
    """Compare the steps and the weights of two results."""
    before, now = steps_of(expected), steps_of(found)
    assert len(before) == len(now) == STEPS
    for name, tolerance in (("loss", loss), ("grad_norm", norm), ("learning_rate", RATE)):
        for one, two in zip(before, now, strict=True):
            assert abs(two[name] - one[name]) <= tolerance * abs(one[name]), name
    before, now = weights_of(expected), weights_of(found)
    assert before.keys() == now.keys()
    for name, tensor in before.items():
        assert now[name].dtype == tensor.dtype
        assert (tensor - now[name]).abs().max() <= weights, name
