"""What a result takes and does: bytes, memory, speed and score, in a process of its own.

    python -m pipelines.compression.measure FOLDER

Prints a JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult, load_result
from pipelines.inference.merge import rows_of_run
from pipelines.inference.predict import predict_examples
from pipelines.models.generation import continue_prompts
from pipelines.process import quiet_libraries
from pipelines.results.sidecar import reported_rows_sha256
from pipelines.tasks.generation import Generation
from pipelines.training.score import score_result
from pipelines.training.throughput import peak_memory

ROWS = 256
"""Rows that are predicted at once to measure the speed."""
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 16, 32
REPEATS = 3
MEGABYTE = 1e6


@dataclass(frozen=True)
class Measured:
    """A result's weights on disk, peak memory of its process, speed and score."""

    size_mb: float
    memory_mb: float
    speed: float
    unit: str
    metric: str
    score: float
    interval: list[float]


def measure(folder: Path) -> Measured:
    """Measure a result in a new process. Raise DataError where its rows are not on this machine."""
    command = [sys.executable, "-m", "pipelines.compression.measure", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder} could not be measured: {done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


@quiet_libraries()
def measure_here(folder: Path) -> Measured:
    """Measure a result in this process."""
    loaded = load_result(folder)
    rows = rows_of_run(loaded)
    if rows is None:
        raise DataError(rows_missing(loaded))
    metrics = score_result(loaded, rows)
    unit, speed = rate(loaded, rows)
    primary = metrics["primary"]
    return Measured(
        size_mb=weights_size(folder) / MEGABYTE,
        memory_mb=peak_memory() / MEGABYTE,
        speed=speed,
        unit=unit,
        metric=primary,
        score=float(metrics[primary]),
        interval=metrics["confidence_interval"],
    )


def rows_missing(loaded: LoadedResult) -> str:
    """Return the message where the rows of a run are not here."""
    path = loaded.recipe.task.dataset.path
    return (
        f"{path} does not have the rows that the result was scored on here (SHA-256 "
        f"{reported_rows_sha256(loaded.sidecar)[:12]}...). Run this where the run was made."
    )


def rate(loaded: LoadedResult, rows: Examples) -> tuple[str, float]:
    """Return the unit of the speed and its median: rows that are predicted, or tokens written."""
    if loaded.recipe.task.head is not None:
        few = list(islice(rows.rows, ROWS))
        seconds = median_seconds(lambda: predict_examples(loaded, replace(rows, rows=few)))
        return "rows/s", len(few) / seconds
    size = loaded.model.config.vocab_size
    prompts = [[(i * 31 + j * 7) % size for j in range(PROMPT_TOKENS)] for i in range(PROMPTS)]
    options = Generation(max_new_tokens=NEW_TOKENS, do_sample=False)
    seconds = median_seconds(
        lambda: continue_prompts(loaded.model, loaded.tokenizer, prompts, options)
    )
    return "tokens/s", PROMPTS * NEW_TOKENS / seconds


def median_seconds(call: Callable[[], Any]) -> float:
    """Return the median time of a call, after one that warms up."""
    call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def weights_size(folder: Path) -> int:
    """Return the bytes of a result's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    from pipelines.terminal import report_errors

    with report_errors():
        print(json.dumps(asdict(measure_here(Path(sys.argv[1])))))
