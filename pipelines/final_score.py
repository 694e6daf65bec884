"""The score of a trained model: with which weights, and of which rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState

from pipelines.console import say
from pipelines.data.splits import Splits
from pipelines.errors import NonFiniteError, Preempted
from pipelines.recipe.recipe import Recipe
from pipelines.tasks.base import RowResult
from pipelines.training.signals import AGAIN, StopAtSignal, Stopped, StopSignals
from pipelines.training.trainer import RecipeTrainer


def keep_weights(recipe: Recipe, trainer: RecipeTrainer) -> dict[str, Any] | None:
    """Load the weights that the result is to have, and return which, if any were chosen.

    Raise CheckpointError where the checkpoint of the best evaluation is damaged.
    """
    if not recipe.train.chooses:
        return None
    state, metric = trainer.state, trainer.args.metric_for_best_model
    step = state.best_global_step if recipe.train.keep == "best" else state.global_step
    if step is None:  # no evaluation was finite
        step = state.global_step
    elif recipe.train.keep == "best":
        trainer.load_best()
        say(f"  keeping step {step:,} of {state.global_step:,}: {metric} {state.best_metric:.4f}")
    return {
        "keep": recipe.train.keep,
        "step": step,
        "last_step": state.global_step,
        "planned_steps": state.max_steps,
        "metric": metric,
        "best": state.best_metric,
    }


@dataclass(frozen=True)
class FinalScore:
    """The score of the reported split.

    `metrics` have those of the validation split, too, where another one is reported; `rows` are
    the results of the rows, on rank 0; `tuned` is what the validation rows have decided.
    """

    metrics: dict[str, Any]
    rows: list[RowResult]
    tuned: dict[str, Any]


def final_score(trainer: RecipeTrainer, reported: str) -> FinalScore:
    """Score the validation rows, and the test rows if those are reported."""
    tuned, scored = trainer.tune(trainer.score("eval"))
    metrics = scored.metrics
    if reported == "test":
        scored = trainer.score("test")
        metrics = scored.metrics | {"validation": validation_of(metrics)}
    is_main = PartialState().is_main_process
    rows = trainer.row_results(reported, scored) if is_main else []
    return FinalScore(metrics, rows, tuned)


def evaluate_at_the_end(trainer: RecipeTrainer, splits: Splits, signals: StopSignals) -> FinalScore:
    """Return the score. Raise Preempted, with a checkpoint of the last step, at a signal.

    On one process the signal itself ends the evaluation. Several leave it together, between two
    batches or after the last.
    """
    step = trainer.state.global_step
    stopping = next(
        each for each in trainer.callback_handler.callbacks if isinstance(each, StopAtSignal)
    )
    try:
        signals.immediate = PartialState().num_processes == 1
        stopping.check()
        final = final_score(trainer, splits.record["reported"])
        signals.immediate = False
        stopping.check()
    except Stopped:
        signals.immediate = False
        trainer.keep_last_step()
        text = f"stopped in the last evaluation, with a checkpoint of step {step:,}; {AGAIN}"
        raise Preempted(text) from None
    return final


def validation_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a result tells of its validation score, where another split is reported."""
    names = (metrics["primary"], "loss", "confidence_interval", "rows")
    return {name: metrics[name] for name in names if name in metrics}


def first_score(trainer: RecipeTrainer, splits: Splits) -> dict[str, float]:
    """Return the primary metric of the evaluation before training, which checkpoints log too.

    It is of the validation rows. Return {} if these have changed since.
    """
    if any(each["field"] == "data.eval" for each in trainer.identity["changed"]):
        return {}
    before = next(row for row in trainer.state.log_history if "eval_primary" in row)
    assert before["step"] == 0
    rows = " (validation rows)" if splits.record["reported"] == "test" else ""
    return {f"before training{rows}": before[f"eval_{before['eval_primary']}"]}


def check_finite(metrics: dict[str, Any], trainer: RecipeTrainer, split: str) -> None:
    """Raise NonFiniteError for a score of the reported split that is not finite."""
    primary, step = metrics["primary"], trainer.state.global_step
    for name in ("loss", primary):
        if name not in metrics or math.isfinite(metrics[name]):
            continue
        text = f"the evaluation's {name} is {metrics[name]}; nothing was saved. "
        if name == "loss":
            text += "Train again with a lower --train.learning-rate and another --output-dir."
        elif trainer.has_checkpoint():
            text += f"The checkpoint of step {step:,} is whole. Give other evaluation rows and run "
            text += f"the same command with --allow-changed data.{split}: only the evaluation is "
            text += "done again. Where a field of the dataset changes too, allow it as well."
        else:
            text += "Give other evaluation rows and run the same command again."
        raise NonFiniteError(text)
