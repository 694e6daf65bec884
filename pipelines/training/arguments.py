"""Translate a recipe to TrainingArguments; the only place that names their fields."""

from __future__ import annotations

from typing import Any, TypeVar

from accelerate import PartialState
from transformers import TrainingArguments

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Train
from pipelines.training.upstream import use_one_device

LOGGED_FRACTION = 0.01
"""Part of all steps between two logs where the recipe does not say how many."""
ONE_BUCKET = 2**20
"""Megabytes of a bucket of DDP that holds the gradients of any model."""
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(recipe: Recipe, kind: type[Arguments], **options: Any) -> Arguments:
    """Translate the recipe; precision and devices come from Accelerate's environment.

    `options` are those that the recipe does not decide, or that one class alone has.
    """
    train = recipe.train
    per_device, accumulation = split_batch(train, PartialState().num_processes)
    best_metric = metric_for_best(recipe)
    arguments = kind(
        output_dir=str(recipe.folder / "checkpoints"),
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=train.learning_rate,
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps or -1,
        warmup_steps=train.warmup_steps,
        **schedule(train),
        **device_options(),
        optim="adamw_torch_fused" if train.optim == "muon" else train.optim,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        logging_steps=train.logging_steps or LOGGED_FRACTION,
        logging_first_step=train.logging_steps is None,
        eval_strategy="steps" if train.eval_steps else "no",
        eval_steps=train.eval_steps,
        save_strategy="steps" if train.save_steps else "no",
        save_steps=train.save_steps or 500,
        save_total_limit=None,  # RecipeTrainer rotates, once a checkpoint is complete
        metric_for_best_model=best_metric,
        greater_is_better=None if best_metric is None else recipe.task.metrics[best_metric],
        seed=train.seed,
        ddp_timeout=train.ddp_timeout,
        ignore_data_skip=recipe.task.dataset.streaming,  # StreamBatches continues by itself
        dataloader_num_workers=train.dataloader_num_workers,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # a decoder's are constants
        logging_nan_inf_filter=False,
        activation_checkpointing=train.activation_checkpointing,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    use_one_device(arguments)
    return arguments


def device_options() -> dict[str, Any]:
    """Return what depends on the device of this process.

    Fp32 stays fp32, which `torch_compile` would round to TF32; `precision_of_training` decides.
    On CPUs the cores that reduce gradients are those that compute them: one bucket, after the
    backward pass, is faster than buckets that overlap with it.
    """
    device = PartialState().device.type
    on_gpu = device == "cuda"
    return {
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": on_gpu,
        "accelerator_config": {"non_blocking": on_gpu},
        "tf32": False if on_gpu else None,
        "ddp_bucket_cap_mb": ONE_BUCKET if device == "cpu" else None,
    }


def metric_for_best(recipe: Recipe) -> str | None:
    """Return the metric that chooses among evaluations, or None where nothing is chosen."""
    if not recipe.train.chooses:
        return None
    return recipe.train.metric_for_best or next(iter(recipe.task.metrics))


def schedule(train: Train) -> dict[str, Any]:
    """Return the learning rate schedule.

    The minimum of a cosine is a fraction: DeepSpeed's optimizer does not know the learning rate.
    """
    if train.lr_scheduler_type != "cosine":
        return {"lr_scheduler_type": train.lr_scheduler_type}
    minimum = {"min_lr_rate": train.min_learning_rate / train.learning_rate}
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": minimum}


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
