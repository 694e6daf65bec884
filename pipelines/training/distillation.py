"""Training towards a teacher: its outputs for each batch, and a loss that compares with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pipelines.errors import Problem, RecipeError
from pipelines.hub.load import LoadedResult, load_result
from pipelines.hub.result_folder import result_folder
from pipelines.recipe.recipe import Recipe
from pipelines.results.check import check_result
from pipelines.tasks.base import Loss, Task
from pipelines.training.trainer import RecipeTrainer

PATH = "distillation.teacher"
INPUTS = ("input_ids", "attention_mask", "position_ids")


@dataclass
class Teacher:
    """A model that is not trained, and its outputs for the current batch."""

    model: Any
    task: Task
    temperature: float
    weight: float
    outputs: Any = field(default=None, init=False)

    def look(self, inputs: dict[str, Any]) -> None:
        """Compute the outputs for a padded batch; how to pack it is the student's alone.

        With a cache, documents that share a row would see each other.
        """
        given = {name: inputs[name] for name in INPUTS if name in inputs}
        with torch.no_grad():
            self.outputs = self.model(**given, use_cache=False)

    def loss(self, own: torch.Tensor, outputs: Any, labels: Any, num_items: Any) -> torch.Tensor:
        """Return the loss of a batch that the teacher has looked at; `own` is the task's."""
        expected, self.outputs = self.outputs, None
        if expected is None:  # an evaluation
            return own
        apart = self.task.distillation_loss(outputs, expected, labels, num_items, self.temperature)
        return (1 - self.weight) * own + self.weight * apart


@dataclass(frozen=True)
class DistilledLoss:
    """A loss, as the Trainer calls it, of which a part is the teacher's."""

    own: Loss
    teacher: Teacher

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the summed loss divided by the labels of the global batch."""
        own = self.own(outputs, labels, num_items_in_batch)
        return self.teacher.loss(own, outputs, labels, num_items_in_batch)


class DistillingTrainer(RecipeTrainer):
    """A RecipeTrainer whose loss is a `DistilledLoss`; it shows the teacher what it trains on."""

    def __init__(self, *, teacher: Teacher, compute_loss_func: Loss, **options: Any):
        loss = DistilledLoss(compute_loss_func, teacher)
        super().__init__(compute_loss_func=loss, **options)
        self.teacher = teacher
        teacher.model.to(self.args.device)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Let the teacher compute first; evaluations are without it."""
        if model.training:
            with self.autocast():
                self.teacher.look(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def load_teacher(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]
) -> Teacher | None:
    """Return the teacher of a recipe, or None where it has none.

    Raise RecipeError for one of another task, labels, tokenizer, or of too few positions.
    """
    given = recipe.distillation
    if given is None:
        return None
    loaded = load_result(given.teacher, given.revision)
    check_teacher(loaded, recipe, tokenizer, labels)
    loaded.model.requires_grad_(False)
    return Teacher(loaded.model, recipe.task, given.temperature, given.weight)


def check_teacher(
    loaded: LoadedResult,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
) -> None:
    """Raise RecipeError for a teacher whose outputs are not of the same classes."""
    problem = None
    if loaded.labels != labels:
        problem = f"has the labels {', '.join(loaded.labels)}, but the rows {', '.join(labels)}."
    elif loaded.tokenizer.get_vocab() != tokenizer.get_vocab():
        problem = "has another tokenizer."
    elif loaded.recipe.task.length < recipe.task.length:
        name = recipe.task.length_field
        problem = f"was trained on {loaded.recipe.task.length} tokens, fewer than task.{name}."
    if problem:
        raise RecipeError([Problem(PATH, problem)])


def check_teachers_task(recipe: Recipe) -> None:
    """Raise RecipeError for a teacher that does not exist or was trained for another task."""
    if recipe.distillation is None:
        return
    folder = result_folder(recipe.distillation.teacher, recipe.distillation.revision)
    task = type(check_result(folder)[0].task)
    if task is not type(recipe.task):
        text = f"is a {task.__name__}, and the recipe's task a {type(recipe.task).__name__}."
        raise RecipeError([Problem(PATH, text)])
