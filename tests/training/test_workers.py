"""Workers of loaders bring the same batches however they start, and no signal stops them."""

import multiprocessing
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from helpers.factories import ROOT, TASKS, method
from pipelines.data.load import load_splits
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.training.build import build_trainer
from pipelines.training.workers import CONTEXTS, STOP_SIGNALS, worker_context

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
    return build_trainer(recipe, model, tokenizer, train=train, held_out=held_out, labels=labels)


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


@pytest.mark.parametrize("start", METHODS)
def test_no_signal_that_stops_a_run_reaches_a_worker(start, start_by):
    start_by(start)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loader = DataLoader(range(8), num_workers=1, multiprocessing_context=worker_context())
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    batches = iter(loader)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    started = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    assert int(next(batches)) == 0
    for number in STOP_SIGNALS:
        for child in started:
            os.kill(child.pid, number)
    assert [int(batch) for batch in batches] == list(range(1, 8))


@pytest.mark.parametrize("start", METHODS)
def test_workers_that_an_error_leaves_behind_change_no_exit_code(start):
    command = [sys.executable, ROOT / "tests" / "helpers" / "workers_left_behind.py", start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.stdout == "ended with 3\n"
    assert "Traceback" not in done.stderr
