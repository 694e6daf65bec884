"""Which trial a worker runs next: one that a killed worker left behind, or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from pipelines.search.locks import Lock
from pipelines.search.parameters import Value
from pipelines.search.samplers import sampler_of
from pipelines.search.study import OpenStudy
from pipelines.search.upstream import reopen_trial


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone runs."""

    trial: optuna.Trial
    values: dict[str, Value]
    """Value of each parameter, by its path."""
    reported: frozenset[int] | None = None
    """Steps whose evaluation a worker that has ended reported; None if the trial is new."""

    @property
    def number(self) -> int:
        """Return the trial's number, from 0."""
        return self.trial.number


def lock_of(opened: OpenStudy, number: int) -> Lock:
    """Return the lock that a worker has while it runs a trial."""
    return Lock(opened.plan.folder / ".locks" / f"trial-{number:03d}")


@contextmanager
def claim_next_trial(opened: OpenStudy) -> Iterator[Claim | None]:
    """Give a trial to this process until the block ends, or None if there is none left to run.

    Trials are taken by one worker at a time, and a worker has a trial's lock from before the trial
    is seen as running. So a running trial whose lock is free belongs to a worker that has ended.
    """
    with opened.lock:
        lock, claim = take_abandoned(opened) or take_new(opened) or (None, None)
    try:
        yield claim
    finally:
        if lock is not None:
            lock.release()


def take_abandoned(opened: OpenStudy) -> tuple[Lock, Claim] | None:
    """Lock the first running trial whose worker has ended, if there is one."""
    for frozen in opened.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        lock = lock_of(opened, frozen.number)
        if lock.try_acquire():
            prepare_sampler(opened, frozen.number)
            trial = reopen_trial(opened.study, frozen)
            steps = frozenset(frozen.intermediate_values)
            return lock, Claim(trial, draw_values(opened, trial), steps)
    return None


def take_new(opened: OpenStudy) -> tuple[Lock, Claim] | None:
    """Begin a trial and lock it, unless there are as many as the plan has."""
    number = len(opened.study.get_trials(deepcopy=False))
    if number >= opened.plan.num_trials:
        return None
    lock = lock_of(opened, number)
    acquired = lock.try_acquire()
    assert acquired, f"{lock.file} is locked before its trial begins"
    prepare_sampler(opened, number)
    trial = opened.study.ask()
    assert trial.number == number, "another process took a trial without the lock"
    return lock, Claim(trial, draw_values(opened, trial))


def prepare_sampler(opened: OpenStudy, number: int) -> None:
    """Let the study draw the values of the trial with a number."""
    opened.study.sampler = sampler_of(opened.plan.flags, opened.plan.parameters, number)


def draw_values(opened: OpenStudy, trial: optuna.Trial) -> dict[str, Value]:
    """Return the values of a trial, which are drawn unless an earlier worker did so."""
    return {each.path: each.suggest(trial) for each in opened.plan.parameters}


def running_elsewhere(opened: OpenStudy) -> list[str]:
    """Return host and process of each worker that runs a trial now."""
    running = opened.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [lock_of(opened, each.number).owner() for each in running]
