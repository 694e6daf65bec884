"""One trial: an ordinary run whose test rows nothing looks at, and how it ended."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.errors import CheckpointError, DataError, EndedEarly, Preempted, RecipeError
from pipelines.flow import run
from pipelines.process import release_memory
from pipelines.recipe.recipe import Recipe
from pipelines.search.claims import Claim
from pipelines.search.space import with_values
from pipelines.search.study import OpenStudy
from pipelines.training.resume import delete_checkpoints

WEIGHTS = ("*.safetensors", "tokenizer.json")
"""Files of a result that are deleted when its trial has ended: those that need space."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: its state, its value if it has one, and the message of an error."""

    state: TrialState
    value: float | None = None
    message: str | None = None


class Pruned(optuna.TrialPruned, EndedEarly):
    """The study prunes a trial."""


class ReportEvaluations(TrainerCallback):
    """Reports the objective of each evaluation, and ends a trial that its study prunes."""

    def __init__(self, claim: Claim, metric: str):
        self.trial = claim.trial
        self.reported = claim.reported or frozenset()
        self.metric = metric
        self.ended = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ended = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report an evaluation in training. Raise Pruned if the trial is to end."""
        step = state.global_step
        if self.ended or step == 0 or metrics is None:
            return
        if step not in self.reported:  # a trial that resumes may evaluate again
            self.trial.report(metrics[f"eval_{self.metric}"], step)
        if step < state.max_steps and self.trial.should_prune():
            raise Pruned(f"pruned at step {step:,} of {state.max_steps:,}")


def recipe_of_trial(opened: OpenStudy, claim: Claim) -> Recipe:
    """Return the recipe of a trial, which scores the validation rows only."""
    recipe = with_values(opened.recipe, claim.values)
    source = replace(recipe.task.dataset, scored_split="eval")
    folder = opened.trial_folder(claim.number)
    return replace(recipe, task=replace(recipe.task, dataset=source), output_dir=str(folder))


def run_trial(opened: OpenStudy, claim: Claim, *, quiet: bool) -> Outcome:
    """Run a trial, record its end in the study and delete its weights.

    What would end every trial ends the search: a signal, a full disk, and rows or values that
    cannot be used if no trial has ended yet.
    """
    start = time.perf_counter()
    outcome = outcome_of(opened, claim, quiet=quiet)
    claim.trial.set_user_attr("seconds", round(time.perf_counter() - start, 1))
    if outcome.message is not None:
        claim.trial.set_user_attr("message", outcome.message)
    opened.study.tell(claim.number, outcome.value, outcome.state)
    clean_up(opened, claim.number)
    release_memory()
    return outcome


def outcome_of(opened: OpenStudy, claim: Claim, *, quiet: bool) -> Outcome:
    """Run a trial and return how it ended."""
    callback = ReportEvaluations(claim, opened.objective.name)
    try:
        recipe = recipe_of_trial(opened, claim)
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, ExitStack() as stack:
            if quiet:  # run.log has what the run prints
                stack.enter_context(redirect_stdout(nowhere))
            metrics = run(recipe, [callback])
        return Outcome(TrialState.COMPLETE, opened.objective.value_in(metrics))
    except Pruned as error:
        return Outcome(TrialState.PRUNED, message=str(error))
    except (Preempted, CheckpointError):
        raise
    except (RecipeError, DataError) as error:
        if not any(each.state.is_finished() for each in opened.study.get_trials(deepcopy=False)):
            raise
        return Outcome(TrialState.FAIL, message=first_line(error))
    except Exception as error:
        return Outcome(TrialState.FAIL, message=first_line(error))


def first_line(error: Exception) -> str:
    """Return the beginning of an error's message; run.log has its whole trace."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def clean_up(opened: OpenStudy, number: int) -> None:
    """Delete the checkpoints of a trial that has ended, and its weights unless they are kept."""
    folder = opened.trial_folder(number)
    delete_checkpoints(folder)
    for pattern in () if opened.plan.flags.keep_trials else WEIGHTS:
        for file in folder.glob(pattern):
            file.unlink()
