"""Small searches, in this process or in one that can be killed."""

import multiprocessing
import os
import sys
from pathlib import Path

from helpers.factories import make_tasks
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.search.plan import Plan, make_plan, split_flags

SPACE = ("--train.learning-rate", "1e-4:1e-1:log", "--train.weight-decay", "0:0.2:0.1")


def searched(checkpoint, helpdesk) -> Recipe:
    """Return a classification of four steps, with a checkpoint and an evaluation every two."""
    return Recipe(
        name="searched",
        task=make_tasks(helpdesk)["text_classification"],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=4, global_batch_size=8, eval_steps=2, save_steps=2, logging_steps=1),
    )


def planned(recipe: Recipe, folder: Path, *words: str) -> Plan:
    """Return the search of a command line."""
    flags, others = split_flags([*words, "--output-dir", str(folder)])
    return make_plan(recipe, flags, others)


def start_worker(plan: Plan, output: Path):
    """Start a worker in a process of its own that has the imports of this one."""
    process = multiprocessing.get_context("fork").Process(target=_work, args=(plan, output))
    process.start()
    return process


def _work(plan: Plan, output: Path) -> None:
    from pipelines.search.worker import work
    from pipelines.terminal import report_errors

    shown = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(shown, 1)
    os.dup2(shown, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: PTH123, SIM115 - for a process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: PTH123, SIM115
    with report_errors():
        work(plan)
