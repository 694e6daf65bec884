"""statistics.json: the rows that a run read, and where it ran. It stays on this machine."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pipelines.data.rows import Examples
from pipelines.reporting.labels import count_labels
from pipelines.tasks.base import Features, Task

NUM_BINS = 20


def make_statistics(
    task: Task,
    splits: Mapping[str, Examples],
    features: Mapping[str, Features],
    *,
    run: str,
    cautions: Iterable[str],
    num_processes: int,
) -> dict[str, Any]:
    """Return the content of statistics.json. `run` identifies the run that it is of."""
    return {
        "run": run,
        "cautions": list(cautions),
        "splits": {
            name: split_statistics(task, examples, features[name])
            for name, examples in splits.items()
        },
        "environment": {
            "gpt2-recipes": version("gpt2-recipes"),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "processes": num_processes,
            "git commit of the working folder": git_commit(),
        },
    }


def split_statistics(task: Task, examples: Examples, features: Features) -> dict[str, Any]:
    """Return the counts, the tokens of rows, and the labels of a split; a stream has none."""
    if examples.streamed:
        return {"streamed": True}
    encoded = [task.num_tokens(row) for row in features.dataset]
    lengths = features.lengths or encoded
    return {
        "counts": features.report,
        "tokens": sum(encoded),
        "lengths": {
            "of": task.cut_field if features.lengths else None,
            "limit": getattr(task, task.cut_field) if features.lengths else None,
            **histogram(lengths),
        },
        "labels": dict(count_labels(task, examples).most_common()),
    }


def histogram(lengths: Sequence[int]) -> dict[str, Any]:
    """Return the numbers of rows in bins of equal width, with median, 95th percentile and maximum.

    Bin i has the lengths from `i * width` to below `(i + 1) * width`; the last one also has those
    of the longest rows above the 99th percentile, which would squeeze all others into one bin.
    """
    ordered = sorted(lengths)
    median, p95, p99 = (ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.95, 0.99))
    width = max(1, math.ceil((p99 + 1) / NUM_BINS))
    counts = [0] * NUM_BINS
    for length in ordered:
        counts[min(length // width, NUM_BINS - 1)] += 1
    return {
        "width": width,
        "counts": counts,
        "median": median,
        "p95": p95,
        "longest": ordered[-1],
    }


def git_commit() -> str | None:
    """Return the commit of the working folder, with -dirty for changed files; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
