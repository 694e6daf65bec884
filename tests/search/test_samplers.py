"""The nth trial has the same values, whichever worker begins it."""

import itertools
import math

import optuna
import pytest
from optuna.trial import TrialState

from pipelines.search.parameters import choices_of, range_of
from pipelines.search.plan import SearchFlags
from pipelines.search.samplers import NUM_RANDOM, pruner_of, sampler_of

PARAMETERS = (
    range_of("rate", "1e-5:1e-1:log", [float]),
    range_of("layers", "2:12:2", [int]),
    range_of("dropout", "0.1:0.5:0.1", [float]),
    choices_of("optim", "adam,sgd", [str]),
)
GRID = PARAMETERS[1:]


def ask(study, flags, parameters):
    number = len(study.get_trials())
    study.sampler = sampler_of(flags, parameters, number)
    trial = study.ask()
    return trial, {each.path: each.suggest(trial) for each in parameters}


def searched(flags, parameters, num_trials):
    """Return the values of trials whose score is their dropout."""
    study, found = optuna.create_study(direction="maximize"), []
    for _ in range(num_trials):
        trial, values = ask(study, flags, parameters)
        found.append(values)
        study.tell(trial, values["dropout"])
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_trials_differ_and_a_seed_repeats_them(sampler):
    found = searched(SearchFlags(sampler=sampler), PARAMETERS, 12)
    assert len({each["rate"] for each in found}) == 12
    assert found == searched(SearchFlags(sampler=sampler), PARAMETERS, 12)
    assert found != searched(SearchFlags(sampler=sampler, seed=1), PARAMETERS, 12)
    for each in found:
        assert 1e-5 <= each["rate"] <= 1e-1
        assert each["layers"] in (2, 4, 6, 8, 10, 12)
        assert each["dropout"] in (0.1, 0.2, 0.3, 0.4, 0.5)  # not 0.30000000000000004
        assert each["optim"] in ("adam", "sgd")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("seed", [0, 42])
def test_the_first_trials_are_spread_over_the_whole_range(sampler, seed):
    found = searched(SearchFlags(sampler=sampler, seed=seed), PARAMETERS, 8)[: NUM_RANDOM - 1]
    quarters = {int(math.log10(each["rate"] / 1e-5)) for each in found}  # of four decades
    assert quarters == {0, 1, 2, 3}
    assert len({each["optim"] for each in found}) == 2


@pytest.mark.parametrize(
    ("text", "kind", "fractions", "values"),
    [
        ("1:9", float, (0, 0.5, 0.75), (1, 5, 7)),
        ("1:10000:log", float, (0, 0.25, 0.5), (1, 10, 100)),
        ("0.1:0.5:0.1", float, (0, 0.19, 0.2, 0.5, 0.99), (0.1, 0.1, 0.2, 0.3, 0.5)),
        ("2:4", int, (0, 0.33, 0.34, 0.99), (2, 2, 3, 4)),
        ("1:7:log", int, (0, 0.32, 0.34, 0.99), (1, 1, 2, 7)),  # of 8: a third is a doubling
        ("4:16:4", int, (0, 0.26, 0.99), (4, 8, 16)),
    ],
)
def test_a_fraction_of_a_range_has_the_value_that_lies_there(text, kind, fractions, values):
    parameter = range_of("a", text, [kind])
    found = [parameter.at(fraction) for fraction in fractions]
    assert found == pytest.approx(values)
    assert all(isinstance(value, kind) for value in found)


def test_tpe_comes_to_better_values_than_chance():
    found = searched(SearchFlags(), PARAMETERS, 40)
    first, last = (
        sum(each["dropout"] for each in part) / len(part)
        for part in (found[:NUM_RANDOM], found[-20:])
    )
    assert last > 0.4 > first  # of 0.5 at most, and 0.3 on average


def test_a_grid_has_each_combination_once_though_all_run_at_the_same_time():
    flags = SearchFlags(sampler="grid")
    study = optuna.create_study()
    found = [tuple(ask(study, flags, GRID)[1].values()) for _ in range(60)]
    assert {trial.state for trial in study.get_trials()} == {TrialState.RUNNING}
    layers, dropout, optim = (2, 4, 6, 8, 10, 12), (0.1, 0.2, 0.3, 0.4, 0.5), ("adam", "sgd")
    assert sorted(found) == sorted(itertools.product(layers, dropout, optim))
    assert found != sorted(found)


@pytest.mark.parametrize("prune", ["median", "hyperband"])
def test_a_pruner_ends_trials_that_are_worse_than_others_at_the_same_step(prune):
    study = optuna.create_study(pruner=pruner_of(SearchFlags(prune=prune), 50))
    ended = {}
    for number in range(20):
        trial = study.ask()
        loss = 1 + number % 2  # every second trial is twice as bad
        for step in range(50, 501, 50):
            trial.report(loss, step)
            if trial.should_prune():
                ended[number] = step
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, loss)
    assert ended
    assert all(number % 2 for number in ended)
    assert min(ended.values()) < 500


def test_without_a_pruner_no_trial_ends_early():
    study = optuna.create_study(pruner=pruner_of(SearchFlags(), 1))
    for loss in (1, 2, 3, 4, 5, 6, 7, 8):
        trial = study.ask()
        trial.report(loss, 1)
        assert not trial.should_prune()
        study.tell(trial, loss)
