"""The picture of a search: the trials in their order, and by each parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from pipelines.search.parameters import Choices, Parameter
from pipelines.search.study import OpenStudy

MARKERS = {TrialState.COMPLETE: ("o", "finished"), TrialState.PRUNED: ("x", "pruned")}
NUM_COLUMNS = 3


def draw_search(opened: OpenStudy, importances: dict[str, float], file: Path) -> None:
    """Draw the values of all trials by number, and by each parameter, as a PNG."""
    parameters = sorted(opened.plan.parameters, key=lambda each: -importances.get(each.path, 0))
    num_rows = -(-(len(parameters) + 1) // NUM_COLUMNS)
    figure = Figure(figsize=(4 * NUM_COLUMNS, 3.2 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False).flatten()
    trials = [
        trial
        for trial in opened.study.get_trials(deepcopy=False, states=tuple(MARKERS))
        if trial.value is not None
    ]
    draw_history(axes[0], opened, trials)
    for each, parameter in zip(axes[1:], parameters, strict=False):
        draw_parameter(each, parameter, trials, importances.get(parameter.path))
    for each in axes[len(parameters) + 1 :]:
        each.set_axis_off()
    for row in axes[::NUM_COLUMNS]:
        row.set_ylabel(opened.objective.name)
    figure.savefig(file, dpi=120)


def draw_history(axes: Axes, opened: OpenStudy, trials: list[FrozenTrial]) -> None:
    """Draw the value of each trial in their order, and the best value so far."""
    scatter(axes, trials, [trial.number for trial in trials])
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    better = max if opened.objective.greater_is_better else min
    best: list[float] = []
    for value in values_of(complete):
        best.append(better([value, *best[-1:]]))
    axes.step([trial.number for trial in complete], best, where="post", label="best so far")
    axes.set_xlabel("trial")
    axes.legend()


def draw_parameter(
    axes: Axes, parameter: Parameter, trials: list[FrozenTrial], importance: float | None
) -> None:
    """Draw the value of each trial by its value of a parameter."""
    drawn: list[Any] = [trial.params[parameter.path] for trial in trials]
    if isinstance(parameter, Choices):  # at equal distances, each with its name
        drawn = [parameter.values.index(value) for value in drawn]
        axes.set_xticks(range(len(parameter.values)), [str(each) for each in parameter.values])
    elif parameter.log:
        axes.set_xscale("log")
    scatter(axes, trials, drawn)
    share = "" if importance is None else f", importance {importance:.0%}"
    axes.set_xlabel(f"{parameter.path}{share}")


def scatter(axes: Axes, trials: list[FrozenTrial], positions: list[Any]) -> None:
    """Draw a point for each trial, with a marker for its state."""
    for state, (marker, name) in MARKERS.items():
        chosen = [index for index, trial in enumerate(trials) if trial.state == state]
        if chosen:
            values = values_of([trials[index] for index in chosen])
            axes.scatter([positions[index] for index in chosen], values, marker=marker, label=name)
    axes.grid(alpha=0.3)


def values_of(trials: list[FrozenTrial]) -> list[float]:
    """Return the values of trials that have one."""
    return [trial.value for trial in trials if trial.value is not None]
