"""The end of a search: the table of trials, the importance of the parameters, a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from pipelines.console import console, say
from pipelines.search.picture import draw_search
from pipelines.search.study import OpenStudy

WORDS = {TrialState.COMPLETE: "", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
NUM_SHOWN = 20  # trials in the table of the terminal
MIN_TRIALS = 4  # below which the importance of parameters says nothing


def report_search(opened: OpenStudy) -> None:
    """Print the trials and importances, and write trials.csv and search.png."""
    trials = ranked(opened)
    importances = importances_of(opened)
    write_table(opened, trials, opened.plan.folder / "trials.csv")
    draw_search(opened, importances, opened.plan.folder / "search.png")
    console().print(table_of(opened, trials[:NUM_SHOWN]))
    if len(trials) > NUM_SHOWN:
        say(f"{len(trials) - NUM_SHOWN} more are in {opened.plan.folder / 'trials.csv'}.")
    if importances:
        shown = ", ".join(f"{name} {value:.0%}" for name, value in importances.items())
        say(f"importance of the parameters (fANOVA): {shown}")


def ranked(opened: OpenStudy) -> list[FrozenTrial]:
    """Return all trials: finished ones from best to worst, then pruned, then failed ones."""
    order = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    sign = -1 if opened.objective.greater_is_better else 1

    def key(trial: FrozenTrial) -> tuple[int, float, int]:
        value = 0.0 if trial.value is None else sign * trial.value
        return order.index(trial.state), value, trial.number

    return sorted(opened.study.get_trials(deepcopy=False, states=tuple(order)), key=key)


def importances_of(opened: OpenStudy) -> dict[str, float]:
    """Return the importance of each parameter, as fractions of 1; {} for too few trials.

    It tells how much of the variance of the trials' values a parameter explains, in a random forest
    fitted to them (fANOVA, Hutter et al. 2014).
    """
    complete = opened.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS or len({each.value for each in complete}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(opened.study, evaluator=evaluator)
    return {path: float(value) for path, value in found.items()}


def cells_of(opened: OpenStudy, trial: FrozenTrial) -> dict[str, Any]:
    """Return the columns of a trial, by their names."""
    return {
        "trial": trial.number,
        opened.objective.name: trial.value,
        **opened.values_of(trial),
        "state": WORDS[trial.state] or "finished",
        "evaluations": len(trial.intermediate_values),
        "seconds": trial.user_attrs.get("seconds"),
        "message": trial.user_attrs.get("message"),
    }


def write_table(opened: OpenStudy, trials: list[FrozenTrial], file: Path) -> None:
    """Write a row for each trial as CSV."""
    rows = [cells_of(opened, trial) for trial in trials]
    with file.open("w", encoding="utf-8", newline="") as opened_file:
        writer = csv.DictWriter(opened_file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table_of(opened: OpenStudy, trials: list[FrozenTrial]) -> Table:
    """Return the table of the terminal."""
    table = Table("trial", opened.objective.name, box=None, header_style="bold", pad_edge=False)
    for each in opened.plan.parameters:
        table.add_column(each.path.rpartition(".")[2])
    table.add_column("seconds", justify="right")
    table.add_column("")
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        values = [short(each) for each in opened.values_of(trial).values()]
        seconds = short(trial.user_attrs.get("seconds"))
        table.add_row(str(trial.number), value, *values, seconds, WORDS[trial.state])
    return table


def short(value: Any) -> str:
    """Return a value in at most four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
