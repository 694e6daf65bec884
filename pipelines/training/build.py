"""Build the Trainer; the only place that names TrainingArguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
)

from pipelines.errors import Problem, RecipeError
from pipelines.models.loss_head import token_losses, with_loss_head
from pipelines.models.packing import Packing, with_plan
from pipelines.models.probes import gives_logits_of_head, isolates_packed_rows
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.step_log import StepLog
from pipelines.tasks.base import Features
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.training.arguments import training_arguments
from pipelines.training.language_model import LanguageModelTrainer, PackedTrainer
from pipelines.training.optimizers import muon_factory
from pipelines.training.trainer import RecipeTrainer


def build_trainer(
    recipe: Recipe,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train: Features | None,
    held_out: Features,
    labels: tuple[str, ...],
    identity: dict[str, Any] | None = None,
    eval_on_start: bool = False,
) -> RecipeTrainer:
    """Return a Trainer whose loss is normalised over the global batch, for every task.

    Its checkpoints carry `identity`, by which a run that resumes knows its own. With
    `eval_on_start` training begins with an evaluation. To call `evaluate` before `train` instead
    would leave the processes of a run unsynchronised: the model then counts as prepared.

    transformers' own losses are not: classification gradients grow with accumulation and with
    processes, and the language-model loss shrinks, so `compute_loss_func` replaces them. trl's are.
    """
    task = recipe.task
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if task.auto_class == "AutoModelForCausalLM":
        inner.loss_type = "ForCausalLM"  # so that the Trainer counts shifted labels
    inner.config.use_cache = False
    isolated = isinstance(task, CausalLM | InstructionTuning) and task.packing in (
        True,
        "bfd_split",
    )
    if isolated and not isolates_packed_rows(inner.base_model):
        text = f"{inner.config.model_type} does not keep documents of a row apart."
        raise RecipeError([Problem("task.packing", text)])

    at_head = isinstance(task, CausalLM) and gives_logits_of_head(inner)
    from_logits = isinstance(task, CausalLM) and not at_head

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if from_logits:
            return token_losses(outputs.logits, labels).sum() / num_items_in_batch
        return task.loss(outputs, labels, num_items_in_batch)

    def reduce_logits(logits: Any, labels: Any) -> Any:
        losses = token_losses(logits, labels) if from_logits else logits
        return task.reduce_logits(losses, labels)

    longest_first = sorted(
        range(len(held_out.dataset)), key=lambda i: -task.num_tokens(held_out.dataset[i])
    )
    given_order = np.argsort(longest_first)

    def compute_metrics(prediction: Any) -> dict[str, Any]:
        predictions, label_ids = prediction.predictions, prediction.label_ids
        given = EvalPrediction(predictions[given_order], label_ids[given_order])
        return task.score(given, held_out, labels).as_metrics()

    arguments = partial(training_arguments, recipe, eval_on_start=eval_on_start)
    options = {
        "identity": identity or {},
        "where": train.locate if train else str,
        "model": model,
        "train_dataset": train.dataset if train else None,
        "eval_dataset": [held_out.dataset[i] for i in longest_first],
        "compute_metrics": compute_metrics,
    }
    if recipe.train.optim == "muon":
        options["optimizer_cls_and_kwargs"] = (muon_factory, {"train": recipe.train})
    if isinstance(task, InstructionTuning | PreferenceTuning):
        from pipelines.training.trl import trl_trainer  # seconds of imports

        trainer = trl_trainer(
            task, arguments, held_out=held_out, processing_class=tokenizer, **options
        )
    else:
        kind: Any = RecipeTrainer
        pad_token_id = int(tokenizer.pad_token_id or 0)
        in_training = task.collate(pad_token_id, task.pad_to_multiple_of)
        if isinstance(task, CausalLM):
            if at_head:
                kind = partial(LanguageModelTrainer, head=with_loss_head(inner))
        elif train is not None and isolates_packed_rows(inner.base_model):
            kind = partial(PackedTrainer, packing=Packing(inner.base_model))
            in_training = with_plan(in_training)
        trainer = kind(
            args=arguments(TrainingArguments),
            data_collator=task.collate(pad_token_id),
            train_collator=in_training,
            compute_loss_func=loss,
            preprocess_logits_for_metrics=reduce_logits,
            **options,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepLog())
    return trainer
