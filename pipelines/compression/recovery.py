"""The recipe of the training after pruning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipelines.compression.options import Compression
from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Distillation, Model, Train


def recovery(recipe: Recipe, origin: Model, compression: Compression) -> Recipe:
    """Return the recipe of the training afterwards, whose model and teacher are `origin`.

    `recipe` is that of `origin`. Raise RecipeError for what the training cannot do.
    """
    if problems := list(wrong_recovery(recipe, compression)):
        raise RecipeError(problems)
    teacher = Distillation(teacher=origin.name_or_path, revision=origin.revision)
    return replace(
        recipe,
        model=origin,
        train=short_training(recipe.train, compression),
        distillation=teacher if compression.distill else None,
        allow_changed=(),
        overwrite=False,
    )


def wrong_recovery(recipe: Recipe, compression: Compression) -> Iterator[Problem]:
    """Yield why the result of a recipe cannot be trained again."""
    if compression.distill and not recipe.task.distils:
        text = f"the loss of {type(recipe.task).__name__} knows no teacher. Leave it out."
        yield Problem("distill", text)
    if recipe.train.optim == "muon" and compression.recover_learning_rate is None:
        text = f"the recipe's {recipe.train.learning_rate:g} is Muon's, which trains from scratch. "
        yield Problem("recover_learning_rate", f"{text}Give one for AdamW, as 2e-4.")


def short_training(train: Train, compression: Compression) -> Train:
    """Return the options of a training of few steps, in which nothing waits for more steps.

    It has the recipe's own choice of weights, and tells no tracker of itself.
    """
    steps = compression.recover_steps
    assert steps is not None
    changed: dict[str, Any] = {"max_steps": steps, "report_to": ()}
    if compression.recover_learning_rate is not None:
        changed["learning_rate"] = compression.recover_learning_rate
    if train.optim == "muon":
        changed["optim"] = "adamw_torch_fused"
    if train.warmup_steps >= steps:
        changed["warmup_steps"] = Train().warmup_steps
    if train.eval_steps is not None and train.eval_steps >= steps:
        changed["eval_steps"] = max(1, steps // 5)
    if train.chooses and steps == 1:  # there is nothing to choose from
        changed |= {"keep": "last", "early_stopping_patience": None}
        changed |= {"early_stopping_threshold": 0.0, "metric_for_best": None}
    return replace(train, **changed)
