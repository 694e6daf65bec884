"""What each variant of a benchmark takes, its clock, and the JSON that it prints."""

import csv
import json
import os
import resource
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from transformers import TrainerCallback

CPU = os.environ.get("BENCHMARK_CLOCK") == "cpu"
LITTLE = "BENCHMARK_LITTLE" in os.environ
"""Whether a case runs with small shapes, which try its flow and measure nothing."""
NEW_TOKENS = 8 if LITTLE else 64
"""Tokens by which each text is continued."""
NUM_CHARACTERS = 2_500_000
"""Of `long_text`: 25 batches of 16 blocks of 1,024 tokens, of 5 characters each or fewer."""
now = time.process_time if CPU else time.perf_counter


def arguments() -> tuple[str, Path, Path, dict[str, str]]:
    """Return case, data, working folder, and flags as `name=value` or `name` gives them."""
    case, data, work, *flags = sys.argv[1:]
    pairs = (flag.partition("=") for flag in flags)
    return case, Path(data), Path(work), {name: value for name, _, value in pairs}


def rows_to_predict(data: Path, work: Path, flags: dict[str, str]) -> tuple[Path, int]:
    """Return a CSV file of sentences, and how many there are."""
    num_rows = int(flags.get("rows", 2000))
    lines = (data / "sst2/train.csv").read_text().splitlines()[: num_rows + 1]
    file = work / f"{num_rows}.csv"
    file.write_text("\n".join(lines) + "\n")
    return file, num_rows


def long_text(data: Path, work: Path) -> Path:
    """Return a file with the text, repeated so that no timed batch is a shorter, last one.

    A compiled model would be compiled again for that.
    """
    text = (data / "shakespeare/input.txt").read_text()
    length = NUM_CHARACTERS // (100 if LITTLE else 1)
    file = work / "long.txt"
    file.write_text((text * (length // len(text) + 1))[:length])
    return file


def texts_to_continue(data: Path) -> list[str]:
    """Return 32 sentences."""
    with (data / "sst2/validation.csv").open() as file:
        return [row["sentence"] for row in islice(csv.DictReader(file), 4 if LITTLE else 32)]


class Clock(TrainerCallback):
    """Time the steps after the first `num_warmup`, and the seconds until the first one began.

    With `whole_batches`, a run that has shorter ones is refused.
    """

    def __init__(self, num_warmup: int, *, whole_batches: bool = False):
        self.num_warmup = num_warmup
        self.whole_batches = whole_batches
        self.first = 0.0
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if self.whole_batches and state.max_steps >= len(train_dataloader):
            raise SystemExit(f"the text has {len(train_dataloader)} batches, the last one shorter")

    def on_step_begin(self, args, state, control, **kwargs):
        started = 0 if CPU else float(os.environ["BENCHMARK_START"])
        self.first = self.first or (now() if CPU else time.time()) - started

    def on_step_end(self, args, state, control, **kwargs):
        # Between the first and the last timed step nothing waits for the device but the run
        is_end = state.global_step in (self.num_warmup, state.max_steps)
        if is_end and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.ends.append(now())

    def report(self, num_rows: int) -> None:
        """Print rows per second, of steps of `num_rows`, and seconds to the first step."""
        timed = self.ends[self.num_warmup - 1 :]
        rate = (len(timed) - 1) / (timed[-1] - timed[0]) if len(timed) > 1 else 0.0
        report(rate=rate * num_rows, first_step=self.first)


def report(**numbers: object) -> None:
    """Print what the runner reads, with the peak of memory in MB: of a GPU, where there is one."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if torch.cuda.is_initialized():
        memory = torch.cuda.max_memory_allocated() / 1e6
    print("\n" + json.dumps(numbers | {"memory": memory}), flush=True)
