"""Use a result from Python: load it once, then predict or generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pipelines.hub.load import LoadedResult
from pipelines.inference.generate import generate_examples
from pipelines.inference.input_rows import Rows, to_examples
from pipelines.inference.loading import load_to_infer
from pipelines.inference.predict import predict_examples
from pipelines.recipe.values import Precision
from pipelines.tasks.base import Task
from pipelines.tasks.generation import Continuation, GenerationOptions

if TYPE_CHECKING:
    import torch


class LoadedModel(LoadedResult):
    """A result in memory: `recipe`, `model`, `tokenizer`, `labels` and `metrics` of its run.

    Rows are texts, dictionaries with the columns that the task names, or a datasets.Dataset. One
    text or one dictionary counts as one row. Answers are always a list, one for each row, in order.
    """

    @property
    def task(self) -> Task:
        """The task that the model was trained for, with its columns and options."""
        return self.recipe.task

    def predict(self, rows: Rows, *, batch_size: int = 32) -> list[dict[str, Any]]:
        """Return labels, numbers or answers with their scores, one dictionary for each row.

        A classifier gives `label`, `score` and `scores` (for several labels `labels` and `scores`,
        for a regression `value`); question answering `answer`, `start`, `end` and `score`.

        Raise DataError for a row that cannot be used and for a language model, and ValueError for
        a `batch_size` below 1.
        """
        check_batch_size(batch_size)
        examples = to_examples(self.task, rows)
        return predict_examples(self, examples, batch_size=batch_size)

    def generate(
        self,
        rows: Rows,
        *,
        seed: int | None = None,
        batch_size: int = 16,
        **options: Unpack[GenerationOptions],
    ) -> list[Continuation]:
        """Return what the model writes after each row: a continuation, or a reply.

        `options` are fields of Generation, as max_new_tokens or do_sample; those that are not given
        are the recipe's. With a `seed` the same text samples the same tokens, alone or in a batch.

        Raise RecipeError for options that are out of range, DataError for a row that cannot be used
        and for a task that writes no text, and ValueError for a `batch_size` below 1.
        """
        check_batch_size(batch_size)
        self.task.check_generates()
        examples = to_examples(self.task, rows)
        return generate_examples(self, examples, options, batch_size=batch_size, seed=seed)


def load(
    repo: str | Path,
    *,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
) -> LoadedModel:
    """Load a result with its base, head, tokenizer and labels.

    `repo` is the folder of a run or a Hub id, with a `revision`. `base` replaces the base that an
    adapter names, say by a copy on disk. The base is loaded as it was trained on, or in another
    `precision`, on the first GPU or the CPU unless a `device` is given. An adapter on a base in
    fp32 is merged into it, which is faster and changes nothing beyond rounding.

    Raise RecipeError for a repository that does not exist or is damaged and for another base than
    the adapter's, and NonFiniteError for weights that are not finite.
    """
    loaded = load_to_infer(repo, revision, base=base, precision=precision, device=device)
    return LoadedModel(**vars(loaded))


def predict(
    repo: str | Path,
    rows: Rows,
    *,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Load a result and predict; see `load` and `LoadedModel.predict`, also for errors."""
    loaded = load(repo, revision=revision, base=base, precision=precision, device=device)
    return loaded.predict(rows, batch_size=batch_size)


def generate(
    repo: str | Path,
    rows: Rows,
    *,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    batch_size: int = 16,
    **options: Unpack[GenerationOptions],
) -> list[Continuation]:
    """Load a result and generate; see `load` and `LoadedModel.generate`, also for errors."""
    loaded = load(repo, revision=revision, base=base, precision=precision, device=device)
    return loaded.generate(rows, seed=seed, batch_size=batch_size, **options)


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError for a batch of no rows."""
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is out of range; it must be at least 1.")
