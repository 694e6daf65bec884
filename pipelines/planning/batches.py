"""The batches of a run: how many tokens they have, and the rows of the largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from pipelines.data.rows import Examples, strings
from pipelines.inputs import Encoded
from pipelines.recipe.recipe import Recipe
from pipelines.tasks.base import Features, Task
from pipelines.training.arguments import split_batch
from pipelines.training.row_order import RowOrder

NUM_LOOKED_AT = 2_000_000
"""Rows of which a run's batches are drawn to look at; those of a longer run after it are alike."""
CHARACTERS = 4
"""Of a token, on average, in English with GPT-2's tokenizer."""


@dataclass(frozen=True)
class Batches:
    """The training batches of one device, in numbers of tokens.

    A batch counts as the rows that a model computes: padded to the longest, unless the trainer
    packs them.
    """

    rows: int
    """Rows of a forward pass."""
    accumulation: int
    """Forward passes of an optimizer step."""
    steps: int
    """Optimizer steps of the run."""
    mean_tokens: float
    """Tokens of a forward pass."""
    max_tokens: int
    """Tokens of the largest forward pass."""
    longest: int
    """Tokens of the longest row."""
    largest: list[dict[str, Any]]
    """The rows of the largest forward pass."""


def batches_of(recipe: Recipe, train: Features, num_processes: int) -> Batches:
    """Return the batches of a run, in the order that its seed gives.

    For a stream, the first rows are used as a sample.
    """
    task, options = recipe.task, recipe.train
    rows, accumulation = split_batch(options, num_processes)
    streamed = not isinstance(train.dataset, Sequence)
    dataset = list(islice(train.dataset, options.global_batch_size)) if streamed else train.dataset
    steps = options.num_steps(-1 if streamed else len(dataset))
    lengths = np.array([task.num_tokens(row) for row in dataset])
    order = rows_in_order(len(dataset), options.seed, steps * options.global_batch_size)
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    sizes = np.array([batch_tokens(task, lengths[batch]) for batch in batches])
    largest = batches[int(sizes.argmax())]
    return Batches(
        rows=rows,
        accumulation=accumulation,
        steps=steps,
        mean_tokens=float(sizes.mean()),
        max_tokens=int(sizes.max()),
        longest=int(lengths.max()),
        largest=[dataset[index] for index in largest],
    )


def rows_in_order(num_rows: int, seed: int, num_drawn: int) -> np.ndarray[Any, Any]:
    """Return the numbers of the rows that a run trains on, in its order, but not of all epochs."""
    num_drawn = min(num_drawn, max(num_rows, NUM_LOOKED_AT))
    num_epochs = max(1, -(-num_drawn // num_rows))
    orders = (RowOrder(num_rows, seed, partial(int, epoch)) for epoch in range(num_epochs))
    drawn = [list(order) for order in orders]
    return np.concatenate(drawn)[:num_drawn]


def batch_tokens(task: Task, lengths: Sequence[int] | np.ndarray[Any, Any]) -> int:
    """Return the tokens that a model computes of a training batch.

    Heads' batches are packed without padding (see `training.build`), all others padded.
    """
    if task.objective == "head":
        return int(np.sum(lengths))
    return int(len(lengths) * np.max(lengths))


def scored_lengths(recipe: Recipe, encoded: Encoded) -> list[list[int]]:
    """Return the tokens of the rows of each split that is scored."""
    return [
        [recipe.task.num_tokens(row) for row in features.dataset]
        for features in encoded.scored.values()
    ]


def largest_evaluation(recipe: Recipe, encoded: Encoded) -> int:
    """Return the tokens of an evaluation batch of the longest rows."""
    size = recipe.train.per_device_eval_batch_size
    lengths = [sorted(each, reverse=True)[:size] for each in scored_lengths(recipe, encoded)]
    return max(len(each) * each[0] for each in lengths)


def longest_examples(task: Task, examples: Examples, count: int, max_tokens: int) -> Examples:
    """Return the `count` longest rows of a split, by their characters, fewer if they are long.

    Together they have about `max_tokens`; a document is cut to that. There are at least two rows,
    if the split has.
    """
    sizes = [sum(map(len, strings(row))) for row in examples.rows]
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    longest = min(sizes[order[0]] // CHARACTERS + 1, task.length)
    chosen = order[: max(2, min(count, max_tokens // longest))]
    picked = examples.select(chosen)
    if (column := task.document_column) is None:
        return picked
    limit = CHARACTERS * max_tokens // len(chosen)
    cut = [row | {column: row[column][:limit]} for row in picked.rows]
    return replace(picked, rows=cut)
