"""Build the Trainer; the only place that names TrainingArguments."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
)

from pipelines.errors import Problem, RecipeError
from pipelines.launcher import check_request, launcher_request
from pipelines.loss_head import (
    LanguageModelTrainer,
    gives_logits_of_head,
    token_losses,
    with_loss_head,
)
from pipelines.optimizers import muon_factory
from pipelines.packing import PackedTrainer, Packing, keeps_rows_apart, with_plan
from pipelines.recipe import Recipe, Train
from pipelines.report import StepLog
from pipelines.tasks import CausalLM, InstructionTuning, PreferenceTuning
from pipelines.tasks.base import Features, Score
from pipelines.trainer import RecipeTrainer

Arguments = TypeVar("Arguments", bound=TrainingArguments)


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
    if isolated and not keeps_rows_apart(inner.base_model):
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
        return as_metrics(task.score(given, held_out, labels))

    arguments = partial(training_arguments, recipe, eval_on_start=eval_on_start)
    options = {
        "identity": identity or {},
        "where": train.where if train else str,
        "model": model,
        "train_dataset": train.dataset if train else None,
        "eval_dataset": [held_out.dataset[i] for i in longest_first],
        "compute_metrics": compute_metrics,
    }
    if recipe.train.optim == "muon":
        options["optimizer_cls_and_kwargs"] = (muon_factory, {"train": recipe.train})
    if isinstance(task, InstructionTuning | PreferenceTuning):
        from pipelines.trl_trainers import trl_trainer  # seconds of imports

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
        elif train is not None and keeps_rows_apart(inner.base_model):
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


def as_metrics(score: Score) -> dict[str, Any]:
    """Return a score as the Trainer's metrics."""
    return score.metrics | {
        "primary": score.primary,
        "confidence_interval": list(score.interval),
        "rows": score.num_rows,
    }


def training_arguments(recipe: Recipe, kind: type[Arguments], **options: Any) -> Arguments:
    """Translate the recipe; precision and devices come from Accelerate's environment.

    `options` are what is not the recipe's to say, or only of one kind.
    """
    train = recipe.train
    per_device, accumulation = split_batch(train, PartialState().num_processes)
    cosine = train.lr_scheduler_type == "cosine"
    return kind(
        output_dir=str(recipe.folder / "checkpoints"),
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=train.learning_rate,
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps or -1,
        warmup_steps=train.warmup_steps,
        lr_scheduler_type="cosine_with_min_lr" if cosine else train.lr_scheduler_type,
        lr_scheduler_kwargs={"min_lr": train.min_learning_rate} if cosine else None,
        optim="adamw_torch_fused" if train.optim == "muon" else train.optim,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        logging_steps=train.logging_steps,
        eval_strategy="steps" if train.eval_steps else "no",
        eval_steps=train.eval_steps,
        save_strategy="steps" if train.save_steps else "no",
        save_steps=train.save_steps or 500,
        save_total_limit=None,  # RecipeTrainer rotates, once a checkpoint is complete
        seed=train.seed,
        use_cpu=PartialState().device.type == "cpu",
        dataloader_num_workers=train.dataloader_num_workers,
        # Workers get closures, which other ways to start them, the default elsewhere, do not take.
        dataloader_multiprocessing_context="fork" if train.dataloader_num_workers else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        logging_nan_inf_filter=False,
        torch_compile=train.torch_compile,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        **options,
    )


def split_batch(train: Train, num_processes: int) -> tuple[int, int]:
    """Return (rows per device, accumulation steps) of a global batch.

    Raise RecipeError when the processes cannot share it evenly.
    """
    size = train.global_batch_size
    if size % num_processes:
        below = size - size % num_processes
        fitting = [n for n in (below, below + num_processes) if n]
        raise RecipeError(
            [
                Problem(
                    "train.global_batch_size",
                    f"{size} rows cannot be shared by {num_processes} processes; "
                    f"{' or '.join(map(str, fitting))} would work.",
                )
            ]
        )
    share = size // num_processes
    most = min(share, train.per_device_train_batch_size)
    per_device = next(n for n in range(most, 0, -1) if share % n == 0)
    return per_device, share // per_device


def check_world_size() -> int:
    """Return the world size. Raise RecipeError when it is not what the launcher was asked for."""
    request = launcher_request()
    check_request(request)
    # Unless it is told so, Accelerate takes ranks without a GPU for as many jobs of their own
    state = PartialState(cpu=request.use_cpu or not torch.accelerator.is_available())
    if request.num_processes not in (None, 0, state.num_processes):
        raise RecipeError(
            [
                Problem(
                    "accelerate launch",
                    f"{request.num_processes} processes were asked for, {state.num_processes} "
                    "started. On a CPU use --config_file accelerate_configs/cpu_2_processes.yaml.",
                )
            ]
        )
    return state.num_processes


def score_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the Trainer's metrics without its prefix and its clocks."""
    dropped = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    stripped = {key.removeprefix("eval_"): value for key, value in metrics.items()}
    return {key: value for key, value in stripped.items() if key not in (*dropped, "epoch")}
