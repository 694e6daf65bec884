"""From a recipe to encoded rows, checked: what a run and its plan have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from pipelines.data.load import RawSplits, describe_formats
from pipelines.data.rows import Examples
from pipelines.data.splits import Splits
from pipelines.hub.destination import check_destination
from pipelines.hub.pin import pin_revisions
from pipelines.models.checkpoint_checks import check_recipe_model
from pipelines.models.probes import num_embeddings
from pipelines.models.tokenizer_checks import check_tokenizer, check_vocabulary
from pipelines.preparing.features import prepared_features
from pipelines.preparing.rows import load_prepared
from pipelines.preparing.store import Store
from pipelines.preparing.tokenizer import prepared_tokenizer
from pipelines.process import slow_precision
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.cautions import cautions
from pipelines.tasks.base import Features
from pipelines.tasks.chat_forms import texts_of
from pipelines.training.distillation import check_teachers_task
from pipelines.training.engines import check_fit
from pipelines.training.identity import check_allowed
from pipelines.training.tracker_checks import check_trackers


@dataclass(frozen=True)
class Encoded:
    """The rows of a run as the model takes them, and what looks wrong with them."""

    tokenizer: PreTrainedTokenizerBase
    train: Features
    scored: dict[str, Features]
    """The rows of each split that is scored; "eval" is the first."""
    warnings: list[str]

    @property
    def features(self) -> dict[str, Features]:
        """Return the features of the training rows and of every split that is scored."""
        return {"train": self.train, **self.scored}

    def check_vocabulary(self, model: Any) -> None:
        """Raise RecipeError if a row has a token that a model has no embedding for."""
        for features in self.features.values():
            check_vocabulary(features, self.tokenizer, num_embeddings(model))


def pin_and_check(recipe: Recipe) -> Recipe:
    """Return the recipe with the commits of what it names on the Hub.

    Raise RecipeError for an unknown field of `allow_changed`, a tracker that cannot be used, and a
    destination that cannot be published to.
    """
    check_allowed(recipe)
    check_fit(recipe)
    check_trackers(recipe.train.report_to)
    check_teachers_task(recipe)
    recipe = pin_revisions(recipe)
    if recipe.push_to and PartialState().is_main_process:
        check_destination(recipe, recipe.push_to, public=recipe.public)
    return recipe


def read_rows(recipe: Recipe, store: Store) -> tuple[Recipe, RawSplits]:
    """Return the recipe with what its rows decide, and the rows, not yet checked.

    Raise RecipeError for a base that cannot be trained, before a row is read.
    """
    check_recipe_model(recipe)
    recipe = recipe.with_test_rows()
    raw = load_prepared(recipe.task.dataset, store)
    return replace(recipe, task=recipe.task.resolved(raw.train)), raw


def encode(recipe: Recipe, splits: Splits, labels: tuple[str, ...], store: Store) -> Encoded:
    """Encode the rows of every split that is trained on or scored.

    Raise RecipeError or DataError for a tokenizer or rows that the task cannot use.
    """
    task = recipe.task
    tokenizer = prepared_tokenizer(recipe, splits.train, texts(splits.train), store)
    unknown = [*check_tokenizer(tokenizer, task, splits.train)]
    make = partial(prepared_features, task, tokenizer=tokenizer, labels=labels, store=store)
    train = make(splits.train, training=True)
    scored = {name: make(rows, training=False) for name, rows in splits.scored.items()}
    for features in scored.values():
        task.check_scorable(features)
    warnings = [*describe_formats(task.dataset), *cautions(recipe, splits, labels, train, scored)]
    warnings += unknown
    if PartialState().device.type == "cpu":
        warnings += slow_precision()
    return Encoded(tokenizer, train, scored, warnings)


def texts(examples: Examples) -> Iterator[str]:
    """Yield every text of the training rows, to train a tokenizer on."""
    for row in examples.rows:
        for value in row.values():
            yield from texts_of(value)
