"""Samplers and pruners. The nth trial is drawn by its number, whichever worker asks for it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from scipy.stats.qmc import Halton

from pipelines.search.parameters import Parameter, Value
from pipelines.search.plan import SearchFlags

NUM_RANDOM = 5
"""Trials before the first that TPE chooses; Optuna's 10 are most of a search of a dozen trials."""


class NumberedSampler(optuna.samplers.BaseSampler):
    """The values of a trial follow from its number alone.

    So two workers never draw the same, and one that resumes does not repeat the first trials, as
    they would with Optuna's GridSampler, or with one seed for a RandomSampler in each.
    """

    def __init__(self, values_of: Callable[[int], Mapping[str, Value]]):
        self.values_of = values_of

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
        return self.values_of(trial.number)[param_name]


def combination(parameters: Sequence[Parameter], seed: int, number: int) -> dict[str, Value]:
    """Return the nth combination of a grid, in an order shuffled by seed."""
    combinations = list(itertools.product(*(each.grid or () for each in parameters)))
    random.Random(seed).shuffle(combinations)
    return dict(zip((each.path for each in parameters), combinations[number], strict=True))


def spread_point(parameters: Sequence[Parameter], seed: int, number: int) -> dict[str, Value]:
    """Return the nth point of a scrambled Halton sequence.

    Its points are random and, unlike independent ones, spread evenly from the first few on.
    """
    sequence = Halton(d=len(parameters), rng=np.random.default_rng(seed))
    sequence.fast_forward(number)
    [point] = sequence.random(1)
    return {
        each.path: each.at(float(fraction))
        for each, fraction in zip(parameters, point, strict=True)
    }


def sampler_of(
    flags: SearchFlags, parameters: Sequence[Parameter], number: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler of the trial with a number."""
    if flags.sampler == "grid":
        return NumberedSampler(partial(combination, parameters, flags.seed))
    if flags.sampler == "random" or number < NUM_RANDOM:
        return NumberedSampler(partial(spread_point, parameters, flags.seed))
    seed = int(np.random.SeedSequence((flags.seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=NUM_RANDOM)


def pruner_of(flags: SearchFlags, first_step: int) -> optuna.pruners.BasePruner:
    """Return the pruner; `first_step` is that of the first evaluation of a trial."""
    if flags.prune == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=NUM_RANDOM)
    if flags.prune == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=first_step)
    return optuna.pruners.NopPruner()
