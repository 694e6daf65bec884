"""A worker of a search: it runs trials until none is left; the last one reports and trains."""

from __future__ import annotations

import time

from optuna.trial import FrozenTrial, TrialState

from pipelines.console import say
from pipelines.errors import Problem, RecipeError
from pipelines.process import collector_without_imports
from pipelines.search.best import train_best
from pipelines.search.claims import Claim, claim_next_trial, running_elsewhere
from pipelines.search.locks import Lock
from pipelines.search.plan import Plan
from pipelines.search.report import ranked, report_search, short
from pipelines.search.study import OpenStudy, open_study
from pipelines.search.trial import Outcome, clean_up, run_trial
from pipelines.training.signals import AGAIN, StopSignals
from pipelines.training.world_size import check_world_size

STOPPED = f"the search stopped between two trials; {AGAIN}"


def work(plan: Plan) -> None:
    """Run trials of a search until there are as many as the plan has, then finish it.

    Raise Preempted at a signal, RecipeError for the study of another search, and if no trial has a
    value.
    """
    with StopSignals() as signals, signals.ending(STOPPED):
        check_one_process()
        opened = open_study(plan)
        say_start(opened)
        with collector_without_imports():
            run_trials(opened)
        finish(opened)


def check_one_process() -> None:
    """Raise RecipeError for several processes that were started together."""
    if check_world_size() > 1:
        text = "a trial runs in one process. Start the same command several times instead, each on "
        raise RecipeError([Problem("accelerate launch", f"{text}a GPU of its own.")])


def run_trials(opened: OpenStudy) -> None:
    """Run trials until none is left to begin; only the first prints what a run prints."""
    quiet = False
    while True:
        with claim_next_trial(opened) as claim:
            if claim is None:
                return
            start = time.perf_counter()
            outcome = run_trial(opened, claim, quiet=quiet)
            say_trial(opened, claim, outcome, time.perf_counter() - start)
            quiet = True


def finish(opened: OpenStudy) -> None:
    """Report the search and train the best recipe, unless that is left to another worker.

    Raise RecipeError if no trial has a value.
    """
    if others := running_elsewhere(opened):
        say(f"No trial is left to begin; these processes run the last: {'; '.join(others)}.")
        say("The last to end reports the search and trains the best recipe.")
        return
    lock = Lock(opened.plan.folder / ".locks" / "end")
    if not lock.try_acquire():
        say(f"{lock.owner()} reports the search and trains the best recipe.")
        return
    try:
        trials = ranked(opened)
        for trial in trials:
            clean_up(opened, trial.number)  # of what a worker left that was killed
        report_search(opened)
        if trials[0].state != TrialState.COMPLETE:
            raise RecipeError([Problem("RECIPE", none_has_value(opened, trials))])
        train_best(opened, trials[0])
    finally:
        lock.release()


def none_has_value(opened: OpenStudy, trials: list[FrozenTrial]) -> str:
    """Return what is wrong where every trial failed or was pruned."""
    reasons = dict.fromkeys(str(trial.user_attrs.get("message")) for trial in trials)
    text = f"none of the {len(trials)} trials has a score: {'; '.join(list(reasons)[:3])}. Their "
    text += f"logs are {opened.plan.folder}/trial-*/run.log. Search other values with another "
    return f"{text}--output-dir, or more with --trials."


def say_start(opened: OpenStudy) -> None:
    """Print where the search is and what it compares trials by."""
    plan, objective = opened.plan, opened.objective
    ended = len(ranked(opened))
    line = f"search in {plan.folder}: {plan.num_trials} trials"
    line += f", {ended} of them have ended" if ended else ""
    better = "higher" if objective.greater_is_better else "lower"
    say(f"{line}; {objective.name} of the validation rows, {better} is better")


def say_trial(opened: OpenStudy, claim: Claim, outcome: Outcome, seconds: float) -> None:
    """Print how a trial ended, the best so far and the time that the rest will take."""
    trials = ranked(opened)
    name = opened.objective.name
    values = ", ".join(
        f"{path.rpartition('.')[2]} {short(value)}" for path, value in claim.values.items()
    )
    line = f"trial {claim.number} ({len(trials)} of {opened.plan.num_trials}): "
    if outcome.value is not None:
        line += f"{name} {outcome.value:.4f}"
    else:
        failed = "failed, " if outcome.state == TrialState.FAIL else ""
        line += f"{failed}{outcome.message}"
    if trials[0].state == TrialState.COMPLETE:
        line += f"; best {trials[0].value:.4f} of trial {trials[0].number}"
    line += f"; {seconds:.0f} s"
    if left := time_left(opened, trials):
        line += f", about {left} left"
    say(f"{line}; {values}")


def time_left(opened: OpenStudy, trials: list[FrozenTrial]) -> str:
    """Return the time that all workers of now need for the trials that are left, "" for none."""
    num_left = opened.plan.num_trials - len(trials)
    mean = sum(trial.user_attrs["seconds"] for trial in trials) / len(trials)
    num_workers = len(running_elsewhere(opened)) + 1
    seconds = num_left * mean / num_workers
    if num_left <= 0:
        return ""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
