"""How fast a run trains, and in how much memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.reporting.progress import RunProgress


class Throughput(TrainerCallback):
    """The tokens of the steps since the last log, and the seconds of the training.

    The seconds count on from what the checkpoint of a resumed run has.
    """

    def __init__(self, progress: RunProgress):
        self.progress = progress
        self.tokens: list[torch.Tensor] = []
        self.start: float | None = None
        self.last = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count, after the seconds of the parts of the run before."""
        before = max((row.get("seconds", 0.0) for row in state.log_history), default=0.0)
        self.start = time.perf_counter() - before
        self.last = self.progress.seconds_of("training")

    def of_steps(self, total: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return speed since the last call, and the most memory so far, in bytes.

        Evaluations and checkpoints do not count. `total` sums over the processes; every rank must
        call this.
        """
        now = self.progress.seconds_of("training")
        seconds, self.last = now - self.last, now
        num_tokens = float(total(torch.cat(self.tokens).sum()))
        self.tokens = []
        return {
            "tokens_per_second": round(num_tokens / seconds, 1),
            "memory_bytes": peak_memory(),
        }

    def seconds(self) -> dict[str, float]:
        """Return the seconds of the training so far; nothing before it has begun."""
        if self.start is None:
            return {}
        return {"seconds": round(time.perf_counter() - self.start, 3)}


def peak_memory() -> int:
    """Return the most bytes so far, of the process or, if it has one, on its GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
