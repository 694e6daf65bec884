"""Guess lengths, batch size, epochs and learning rate, each with its reason.

The learning rates and epochs are those of the shipped recipes; docs/scores.md has what they score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipelines.errors import DataError
from pipelines.recipe.values import Train
from pipelines.scaffold.base_model import BaseModel
from pipelines.scaffold.guess import Fit, Guess
from pipelines.tasks.base import Task

SAMPLE = 2000  # rows whose tokens are counted
PERCENT = 99  # of the rows that are read whole
NARROW = 384  # width up to which a model takes ten times the learning rate
BATCH_TOKENS = 8192  # of a forward pass of GPT-2's width; wider models take fewer
MIN_BLOCKS = 50  # rows of packed documents to train on
ASSUMED_ROWS = 10_000  # of data that are not read
STEPS = 400  # that a small data set is passed over for
RATES = {  # of a model of GPT-2's width: all weights, an adapter
    "pretrain": (5e-5, 5e-4),
    "classify": (3e-5, 2e-4),
    "answer": (3e-5, 3e-4),
    "instruct": (3e-5, 2e-4),
    "prefer": (5e-7, 5e-6),
}
SCRATCH_RATE = {"pretrain": 6e-4}
NARROW_TIMES = {"prefer": 40}
"""Times by which a narrow model takes a higher rate than GPT-2, if not ten."""
NARROW_MOST = 2e-3
EXTRA_TOKENS = 2  # of a row: a separator, and the EOS that ends it


def row_lengths(rows: Sequence[dict[str, Any]], fit: Fit, base: BaseModel) -> list[int]:
    """Return the tokens of at most SAMPLE rows from all parts of the data, ascending."""
    step = max(1, len(rows) // SAMPLE)
    texts = [fit.texts(row) for row in rows[::step][:SAMPLE]]
    counts = iter(base.count_tokens([text for each in texts for text in each]))
    return sorted(sum(next(counts) for _ in each) + EXTRA_TOKENS for each in texts)


def with_length(
    task: Task, lengths: list[int], base: BaseModel, num_rows: int
) -> tuple[Task, Guess]:
    """Return a task whose rows fit the model, with the reason for their length."""
    flag, most = f"--task.{task.length_field.replace('_', '-')}", base.positions
    if not lengths:
        value, why = min(task.length, most), "the task's default, since no row was read"
    elif task.document_column is not None:
        total = sum(lengths) * num_rows // len(lengths)
        value = block_size(total, most)
        if total < 2 * value:
            text = f"about {total:,} tokens are too few to train on and to score."
            raise DataError(f"{task.dataset.path}: {text}")
        why = f"{total:,} tokens ({base.counted}) fill {total // value:,} rows of it"
    elif task.reads_windows:
        value, why = length_of_windows(lengths, min(task.length, most), base)
    else:
        value, why = length_of_rows(lengths, most, base)
    return task.with_length(value), Guess(task.length_field, str(value), why, flag)


def length_of_windows(lengths: list[int], most: int, base: BaseModel) -> tuple[int, str]:
    """Return the length of windows that most rows fit, and the reason."""
    value, why = length_of_rows(lengths, most, base)
    if lengths[-1] > value:
        part = sum(length > value for length in lengths) / len(lengths)
        why = f"{part:.0%} of the rows are longer, and read in several windows"
    return value, why


def length_of_rows(lengths: list[int], most: int, base: BaseModel) -> tuple[int, str]:
    """Return the length that most rows fit, at most that of the model, and the reason."""
    at = lengths[math.ceil(len(lengths) * PERCENT / 100) - 1]
    value = min(most, max(16, math.ceil(at / 8) * 8))
    why = f"{PERCENT} % of the rows have at most {at:,} tokens ({base.counted})"
    if at > most:
        cut = sum(length > most for length in lengths) / len(lengths)
        why = f"the most that fits; {cut:.0%} of the rows are longer, the longest {lengths[-1]:,}"
    return value, why


def block_size(num_tokens: int, most: int) -> int:
    """Return the largest power of 2 of which the tokens fill MIN_BLOCKS rows."""
    sizes = [2**power for power in range(10, 3, -1)]
    fitting = (size for size in sizes if size <= most and num_tokens >= MIN_BLOCKS * size)
    return next(fitting, min(16, most))


def training(
    name: str, method: str, base: BaseModel, rows: int, length: int
) -> tuple[Train, Guess]:
    """Return how to train on some rows of a length, 0 if they are unknown, and the reason."""
    is_scratch = base.why.startswith("random")
    full, adapter = RATES[name]
    rate = full if method == "full" else adapter
    why = f"usual for {method} of a model of width {base.width:,}"
    if is_scratch:
        rate, why = SCRATCH_RATE.get(name, 1e-3), "usual for random weights"
    narrow = base.width <= NARROW
    if narrow:
        rate = 1e-3 if is_scratch else min(rate * NARROW_TIMES.get(name, 10), NARROW_MOST)
    batch = next(size for size, most in BATCHES if (rows or ASSUMED_ROWS) < most)
    epochs = num_epochs(name, rows or ASSUMED_ROWS, batch, is_scratch=is_scratch)
    per_device = min(batch, forward_rows(length, base.width))
    train = Train(
        learning_rate=float(f"{rate:.2g}"),
        num_train_epochs=epochs,
        global_batch_size=batch,
        per_device_train_batch_size=min(per_device, 32),
        per_device_eval_batch_size=min(forward_rows(length, base.width), 32),
        **(PRETRAINING if is_scratch and name == "pretrain" else {}),
    )
    if is_scratch and name == "pretrain":
        train = replace(train, min_learning_rate=train.learning_rate / 10)
    steps = f"; about {math.ceil(rows / batch) * epochs:,} steps" if rows else ""
    passes = f"{epochs} epochs" if epochs > 1 else "1 epoch"
    value = f"learning rate {train.learning_rate:g}, {passes} of {batch} rows a step"
    return train, Guess("training", value, f"{why}{steps}")


BATCHES = ((8, 1_000), (16, 5_000), (32, 50_000), (64, math.inf))
"""Rows of a step, and the training rows below which they are taken."""
PRETRAINING: dict[str, Any] = {"lr_scheduler_type": "cosine", "weight_decay": 0.1}


def num_epochs(name: str, rows: int, batch: int, *, is_scratch: bool) -> int:
    """Return the passes over the rows: more over few rows, one where DPO would overfit."""
    if name == "prefer":
        return 1
    fewest = 2 if name == "answer" else 3
    wanted = math.ceil(STEPS * (2 if is_scratch else 1) * batch / max(rows, 1))
    return max(min(wanted, 10), 1 if rows > 200_000 else fewest)


def forward_rows(length: int, width: int) -> int:
    """Return the rows of a forward pass, a power of 2."""
    tokens = BATCH_TOKENS * 768 / max(width, 768)
    return int(2 ** max(0, math.floor(math.log2(tokens / length))))
