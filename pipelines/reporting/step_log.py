"""Tell of each logged step and each evaluation: in the live line, as lines, in metrics.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.console import console, say
from pipelines.log import LOG
from pipelines.reporting.progress import RunProgress
from pipelines.reporting.run_files import METRICS
from pipelines.reporting.units import clock

INTERVAL = 10.0
"""Least seconds between two lines of steps, unless the recipe has `logging_steps`."""
CLOCKS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
SUMMARY = "train_runtime"  # in the log of a whole training, which has its means


class StepLog(TrainerCallback):
    """Shows loss, gradient norm, learning rate and speed of steps, and the metric of evaluations.

    A live line shows the latest values. At most every `interval` seconds they are printed, or with
    a live line written to run.log alone; evaluations always are printed.
    """

    def __init__(self, progress: RunProgress, *, interval: float = INTERVAL):
        self.progress = progress
        self.interval = interval
        self.printed = -math.inf
        self.started = (0, 0.0)
        self.metric = ""
        self.batches = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = state.global_step, time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.advance(state.global_step, total=state.max_steps)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.batches += 1
        self.progress.advance(self.batches)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        self.batches = 0
        fields = {"event": "log", "step": state.global_step} | numbers_of(logs)
        step = f"  step {state.global_step:,} of {state.max_steps:,}: "
        if "grad_norm" in logs:
            self.show_step(step, self.seconds_left(state), logs, fields)
        elif "eval_primary" in logs and 0 < state.global_step < state.max_steps:
            name = logs["eval_primary"]
            self.metric = f"{name} {logs[f'eval_{name}']:.4f}"
            say(f"{step}{self.metric}", fields)

    def show_step(
        self, step: str, left: float, logs: dict[str, Any], fields: dict[str, Any]
    ) -> None:
        """Show a logged step, of whose values `logs` has all and `fields` the numbers."""
        self.progress.advance(fields["step"], status=self.status(logs))
        now = time.perf_counter()
        if now - self.printed < self.interval and left > 0 and not console().json_lines:
            return
        self.printed = now
        line = f"{step}loss {logs['loss']:.4f}, gradient norm {logs['grad_norm']:.3g}, learning "
        line += f"rate {logs['learning_rate']:.3g}, {speed(logs)}, {clock(left)} left"
        if self.progress.is_live:
            LOG.info(line)
        else:
            say(line, fields | {"seconds_left": round(left, 1)})

    def status(self, logs: dict[str, Any]) -> str:
        """Return the latest values, for the live line."""
        parts = [f"epoch {logs['epoch']:.2f}", f"loss {logs['loss']:.4f}", self.metric]
        parts += [f"lr {logs['learning_rate']:.3g}", speed(logs)]
        return ", ".join(part for part in parts if part)

    def seconds_left(self, state: TrainerState) -> float:
        """Return the seconds until the last step, at the speed since the start."""
        first, start = self.started
        elapsed, num_steps = time.perf_counter() - start, state.global_step - first
        return elapsed / max(num_steps, 1) * (state.max_steps - state.global_step)


class MetricsFile(TrainerCallback):
    """Appends every log of a run to metrics.jsonl, on rank 0.

    A resumed run begins with the logs that are in its checkpoint, so that no step is in it twice.
    """

    def __init__(self, folder: Path):
        self.file = folder / METRICS

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            rows = ((row["step"], row) for row in state.log_history)
            self.file.write_text("".join(lines_of(rows)), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            with self.file.open("a", encoding="utf-8") as out:
                out.writelines(lines_of([(state.global_step, logs or {})]))


def lines_of(rows: Iterable[tuple[float, dict[str, Any]]]) -> Iterable[str]:
    """Yield a line of JSON for the numbers of each log, with its step."""
    for step, logs in rows:
        if SUMMARY not in logs:
            yield json.dumps({"step": step} | numbers_of(logs)) + "\n"


def numbers_of(logs: dict[str, Any]) -> dict[str, float | int | None]:
    """Return the numbers of a log without clocks; None for a number that is not finite."""
    order = sorted(logs, key=lambda name: name not in ("epoch", "seconds"))
    return {
        name: logs[name] if math.isfinite(logs[name]) else None
        for name in order
        if isinstance(logs[name], int | float) and not isinstance(logs[name], bool)
        if name != "step" and not name.endswith(CLOCKS)
    }


def speed(logs: dict[str, Any]) -> str:
    """Return speed and memory of a log."""
    parts = []
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "memory_bytes" in logs:
        parts.append(f"{logs['memory_bytes'] / 1e9:.1f} GB")
    return ", ".join(parts)
