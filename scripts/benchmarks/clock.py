"""The clock that both sides of a benchmark run by: it prints one line of JSON."""

import json
import os
import time

from transformers import TrainerCallback

CPU = os.environ.get("BENCHMARK_CLOCK") == "cpu"
now = time.process_time if CPU else time.perf_counter


class Clock(TrainerCallback):
    """Time the steps after the first `num_warmup`, and the seconds until the first one began."""

    def __init__(self, num_warmup: int = 1):
        self.num_warmup = num_warmup
        self.first = 0.0
        self.ends: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        started = 0 if CPU else float(os.environ["BENCHMARK_START"])
        self.first = self.first or (now() if CPU else time.time()) - started

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(now())

    def steps_per_second(self) -> float:
        """Return the rate of the timed steps."""
        timed = self.ends[self.num_warmup - 1 :]
        return (len(timed) - 1) / (timed[-1] - timed[0])


def report(**numbers: float) -> None:
    """Print what the runner reads."""
    print("\n" + json.dumps(numbers), flush=True)
