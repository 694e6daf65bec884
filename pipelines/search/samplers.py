"""Samplers and pruners. The nth trial is drawn with the nth seed, whichever worker asks for it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from pipelines.search.parameters import Parameter, Value
from pipelines.search.plan import SearchFlags

NUM_RANDOM = 5
"""Trials before the first that TPE chooses; Optuna's 10 are most of a search of a dozen trials."""


class NumberedGrid(optuna.samplers.BaseSampler):
    """The nth trial has the nth combination, in an order shuffled by seed.

    Optuna's GridSampler may give two workers the same combination.
    """

    def __init__(self, parameters: Sequence[Parameter], seed: int):
        self.paths = [each.path for each in parameters]
        self.combinations = list(itertools.product(*(each.grid or () for each in parameters)))
        random.Random(seed).shuffle(self.combinations)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}  # each parameter is asked for by itself

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Value:
        return self.combinations[trial.number][self.paths.index(param_name)]


def sampler_of(
    flags: SearchFlags, parameters: Sequence[Parameter], number: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler of the trial with a number.

    With one seed for all, each worker, and each that resumes, would draw the same first trials.
    """
    if flags.sampler == "grid":
        return NumberedGrid(parameters, flags.seed)
    seed = int(np.random.SeedSequence((flags.seed, number)).generate_state(1)[0])
    if flags.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=NUM_RANDOM)


def pruner_of(flags: SearchFlags, first_step: int) -> optuna.pruners.BasePruner:
    """Return the pruner; `first_step` is that of the first evaluation of a trial."""
    if flags.prune == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=NUM_RANDOM)
    if flags.prune == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first_step)
    return optuna.pruners.NopPruner()
