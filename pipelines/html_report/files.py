"""What a run left in its folder, for its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.evaluation.compare import ComparedResult, read_result
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.run_files import METRICS, SAMPLES, STARTED, STATISTICS
from pipelines.results.predictions import read_predictions
from pipelines.results.sidecar import tuned_options
from pipelines.tasks.base import RowResult, Task


@dataclass(frozen=True)
class ReportedRun:
    """A finished run on this machine, as its files tell; each file is read once."""

    result: ComparedResult

    @property
    def name(self) -> str:
        """The folder, as the user typed it."""
        return self.result.name

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.result.recipe

    @property
    def sidecar(self) -> dict[str, Any]:
        """The content of task.json."""
        return self.result.sidecar

    @cached_property
    def task(self) -> Task:
        """The task with what the run decided by its validation rows."""
        return self.recipe.task.tuned(tuned_options(self.sidecar))

    @cached_property
    def is_replaced(self) -> bool:
        """Whether another run has begun in the folder, to which the files of a run belong now."""
        file = self.result.folder / STARTED
        return file.is_file() and file.read_text(encoding="utf-8") != self.sidecar["run"]

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl; [] where there is none of this run."""
        return [] if self.is_replaced else self.lines(METRICS)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Lines of samples.jsonl; [] where there is none of this run."""
        return [line for line in self.lines(SAMPLES) if line.get("run") == self.sidecar["run"]]

    @cached_property
    def statistics(self) -> dict[str, Any] | None:
        """Content of statistics.json, or None where there is none of this run."""
        lines = self.lines(STATISTICS, whole=True)
        return lines[0] if lines and lines[0].get("run") == self.sidecar["run"] else None

    @cached_property
    def rows(self) -> Sequence[RowResult]:
        """Lines of predictions.jsonl; [] where there is none."""
        return list(read_predictions(self.result.folder, self.sidecar, self.name) or [])

    def lines(self, file: str, *, whole: bool = False) -> list[dict[str, Any]]:
        """Return the JSON objects of a file, one a line or the `whole` one; [] without the file.

        Raise RecipeError, with the number of the line, for a line that is not an object.
        """
        path = self.result.folder / file
        if not path.is_file():
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
        values = []
        for number, line in enumerate([text] if whole else text.splitlines(), start=1):
            try:
                values.append(dict(json.loads(line)))
            except (ValueError, TypeError, RecursionError):
                problem = f"{file}:{number} is not a JSON object. Delete the file to leave it out."
                raise RecipeError([Problem(self.name, problem)]) from None
        return values


def read_run(folder: str) -> ReportedRun:
    """Read a finished run. Raise RecipeError for a folder without one."""
    if not Path(folder).is_dir():
        raise RecipeError([Problem(folder, "is not a folder. Give the folder of a run.")])
    return ReportedRun(read_result(folder))
