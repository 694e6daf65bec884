"""Build the trainer of a recipe: one for each objective of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from pipelines.errors import Problem, RecipeError
from pipelines.models.causal_attention import leave_masks_out, takes_bounds
from pipelines.models.chunked_loss import use_chunked_loss
from pipelines.models.packing import WithBounds, WithPlan, accept_plans
from pipelines.models.probes import (
    gives_logits_of_head,
    isolates_packed_rows,
    passes_keywords_to_body,
)
from pipelines.models.upstream import count_shifted_labels, skip_padding_check
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.progress import RunProgress
from pipelines.reporting.step_log import INTERVAL, StepLog
from pipelines.tasks.base import Features, Objective, Task
from pipelines.training.arguments import training_arguments
from pipelines.training.best import choosing_callbacks
from pipelines.training.distillation import DistillingTrainer, load_teacher
from pipelines.training.language_model import LanguageModelTrainer
from pipelines.training.loaders import numbered
from pipelines.training.optimizers import muon_factory
from pipelines.training.parts import (
    ReducedLosses,
    ScoredSplit,
    TaskLoss,
    TrainerParts,
    losses_from_logits,
    summed_losses,
)
from pipelines.training.trainer import RecipeTrainer


def build_trainer(
    recipe: Recipe,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train: Features | None,
    scored: Mapping[str, Features],
    labels: tuple[str, ...],
    progress: RunProgress | None = None,
    identity: dict[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> RecipeTrainer:
    """Return a Trainer whose loss is normalised over the global batch, for every task.

    `scored` has the rows of each split that it can score: "eval", by which it evaluates during the
    training, and "test" if there is one. `progress` shows what it does. Its checkpoints store
    `identity`, so that a run resumes only its own checkpoints. `arguments` are TrainingArguments
    that the recipe does not decide. With `eval_on_start` training begins with an evaluation: to
    call `evaluate` before `train` instead would leave the processes of a run unsynchronised, since
    the model then counts as prepared.

    transformers' own losses are not normalised so: classification gradients grow with accumulation
    and with processes, and the language-model loss shrinks; `compute_loss_func` replaces them.
    """
    teacher = load_teacher(recipe, tokenizer, labels) if train else None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    prepare_base(recipe.task, base)
    splits = {name: ScoredSplit(recipe.task, rows, labels) for name, rows in scored.items()}
    options = {
        "identity": identity or {},
        "progress": progress or RunProgress(),
        "describe_row": train.locate if train else str,
        "model": model,
        "train_dataset": numbered(train.dataset) if train else None,
        "eval_dataset": splits["eval"].dataset,
        "splits": splits,
    }
    if recipe.train.optim == "muon":
        options["optimizer_cls_and_kwargs"] = (muon_factory, {"train": recipe.train})
    translate = partial(training_arguments, recipe, **arguments)
    trainer = TRAINERS[recipe.task.objective](
        TrainerParts(recipe.task, base, tokenizer, train, labels, translate, options, teacher)
    )
    trainer.remove_callback(PrinterCallback)
    interval = INTERVAL if recipe.train.logging_steps is None else 0.0
    log = StepLog(options["progress"], interval=interval)
    for callback in (log, *choosing_callbacks(recipe.train), *callbacks):
        trainer.add_callback(callback)
    return trainer


def prepare_base(task: Task, base: Any) -> None:
    """Set what training needs of a model. Raise RecipeError for one that would mix packed rows."""
    if task.learns_tokens:
        count_shifted_labels(base)
    skip_padding_check(base)
    base.config.use_cache = False
    leave_masks_out(base)
    if task.isolates_rows and not isolates_packed_rows(base.base_model):
        text = f"{base.config.model_type} does not isolate the documents of a row."
        raise RecipeError([Problem("task.packing", text)])


def head_trainer(parts: TrainerParts) -> RecipeTrainer:
    """Return the trainer of a head that the task has a loss for; its batches are packed."""
    task, base, train = parts.task, parts.base, parts.train
    collate = task.collate(parts.pad_token_id, task.pad_to_multiple_of)
    packs = train is not None and isolates_packed_rows(base.base_model)
    if packs and passes_keywords_to_body(base):
        accept_plans(base.base_model)
        collate = WithPlan(collate)
    return trainer_kind(parts)(
        args=parts.arguments(TrainingArguments, **task.trainer_options()),
        data_collator=collate,
        eval_collator=task.collate(parts.pad_token_id),
        compute_loss_func=TaskLoss(task.training_loss(train, parts.labels) if train else task.loss),
        preprocess_logits_for_metrics=task.reduce_logits,
        **parts.options,
    )


def trainer_kind(parts: TrainerParts) -> Callable[..., RecipeTrainer]:
    """Return RecipeTrainer, or one that trains towards a teacher."""
    if parts.teacher is None:
        return RecipeTrainer
    return partial(DistillingTrainer, teacher=parts.teacher)


def language_model_trainer(parts: TrainerParts) -> RecipeTrainer:
    """Return the trainer of next tokens, with a chunked loss where the model's head allows it."""
    task = parts.task
    chunked = parts.teacher is None and gives_logits_of_head(parts.base)
    if chunked:
        use_chunked_loss(parts.base)
    collate = task.collate(parts.pad_token_id, task.pad_to_multiple_of)
    if task.isolates_rows and takes_bounds(parts.base):
        collate = WithBounds(collate)
    kind = LanguageModelTrainer if chunked else trainer_kind(parts)
    return kind(
        args=parts.arguments(TrainingArguments, **task.trainer_options()),
        data_collator=collate,
        eval_collator=task.collate(parts.pad_token_id),
        compute_loss_func=summed_losses if chunked else losses_from_logits,
        preprocess_logits_for_metrics=ReducedLosses(task, from_logits=not chunked),
        **parts.options,
    )


def instruction_trainer(parts: TrainerParts) -> RecipeTrainer:
    """Return the trainer of replies."""
    from pipelines.training import trl  # seconds of imports

    return trl.instruction_trainer(parts)


def preference_trainer(parts: TrainerParts) -> RecipeTrainer:
    """Return the trainer of preferences."""
    from pipelines.training import trl  # seconds of imports

    return trl.preference_trainer(parts)


TRAINERS: dict[Objective, Callable[[TrainerParts], RecipeTrainer]] = {
    "head": head_trainer,
    "language_model": language_model_trainer,
    "instruction": instruction_trainer,
    "preference": preference_trainer,
}
