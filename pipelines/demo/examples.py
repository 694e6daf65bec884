"""Inputs to try: the validation rows whose texts the run has kept on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.reporting.run_files import SAMPLES
from pipelines.tasks.base import Task


def read_examples(folder: Path, task: Task) -> list[list[str]]:
    """Return the texts of a few rows, one for each column of the task's interface.

    samples.jsonl has the texts that the model reads, on a line each. A row of several lines where
    one is expected is left out. Return [] where the run left none, as in a download.
    """
    file = folder / SAMPLES
    if not file.is_file():
        return []
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    texts = [str(row["input"]) for row in rows if row["when"] == "after"]
    found = map(task.texts_of_input, texts)
    return [list(each) for each in found if each]
