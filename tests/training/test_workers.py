"""Workers of loaders bring the same batches however they start, and no signal stops them."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from helpers.factories import ROOT, TASKS, method
from pipelines.data.load import load_splits
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.training.build import build_trainer
from pipelines.workers import CONTEXTS

METHODS = sorted(CONTEXTS)


@pytest.fixture
def start_by():
    """Set Python's own way to start processes, as a platform or a user may."""
    before = multiprocessing.get_start_method()
    yield lambda name: multiprocessing.set_start_method(name, force=True)
    multiprocessing.set_start_method(before, force=True)


def trainer_of(task, checkpoint, tokenizer, folder, num_workers):
    recipe = Recipe(
        name="tiny",
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(dataloader_num_workers=num_workers),
        output_dir=str(folder),
        **method("lora"),
    )
    splits = load_splits(task.dataset)
    labels = task.labels(splits.train)
    model = build_model(recipe, tokenizer, labels)
    train, held_out = (
        task.features(rows, tokenizer, labels, training=rows is splits.train)
        for rows in (splits.train, splits.held_out)
    )
    return build_trainer(
        recipe, model, tokenizer, train=train, scored={"eval": held_out}, labels=labels
    )


def flat(batch):
    """Return the tensors of a batch by name, those of a packing plan too."""
    named = {}
    for name, value in batch.items():
        parts = value if isinstance(value, tuple | list) else [value]
        named |= {f"{name} {number}": part for number, part in enumerate(parts)}
    return named


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_bring_the_batches_of_the_process_itself(
    start, name, tasks, checkpoint, tokenizer, tmp_path, start_by
):
    start_by(start)
    found = []
    for num_workers in (0, 1):
        trainer = trainer_of(tasks[name], checkpoint, tokenizer, tmp_path, num_workers)
        loaders = (trainer.get_train_dataloader(), trainer.get_eval_dataloader())
        found.append([flat(next(iter(loader))) for loader in loaders])
    for expected, got in zip(*found, strict=True):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(got[key], value), key


def output_of(helper, *arguments):
    """Return what a program of tests/helpers prints, in a process of its own."""
    command = [sys.executable, ROOT / "tests" / "helpers" / helper, *arguments]
    paths = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env=os.environ | paths
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("start", METHODS)
def test_no_signal_that_stops_a_run_reaches_a_worker(start):
    assert output_of("signals_to_workers.py", start) == f"{list(range(8))}\n"


@pytest.mark.parametrize("start", METHODS)
def test_workers_that_an_error_leaves_behind_change_no_exit_code(start):
    assert output_of("workers_left_behind.py", start) == "ended with 3\n"


def test_what_a_spawned_worker_imports_needs_no_transformers():
    """It would start three seconds later."""
    modules = (".training.loaders", ".workers", ".models.packing", ".data.encoded_rows")
    modules += (".tasks.text_classification", ".tasks.question_answering", ".tasks.causal_lm")
    assert output_of("imported_modules.py", *modules) == "torch\n"
