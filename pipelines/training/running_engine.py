"""Which engine a prepared model runs on, compared with the requested one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.console import say
from pipelines.errors import Problem, RecipeError
from pipelines.process import bf16_requested
from pipelines.training.engines import (
    DDP,
    FSDP2,
    ONE_PROCESS,
    ZERO2,
    ZERO3,
    Engine,
    requested_engine,
)


def packed_storage() -> torch.dtype:
    """Return the type of the tensors that 4-bit weights are packed into.

    FSDP2 shards and gathers those of a floating type, without a change if it gathers by that type.
    """
    if requested_engine() is not FSDP2:
        return torch.uint8
    return torch.bfloat16 if bf16_requested() else torch.float32


def engine_of(model: Any) -> Engine:
    """Return the engine that a model was prepared for."""
    if is_zero(model):
        return ZERO3 if model.zero_optimization_stage() == 3 else ZERO2
    if isinstance(model, FSDPModule):
        return FSDP2
    if isinstance(model, DistributedDataParallel):
        return DDP
    return ONE_PROCESS


def is_zero(model: Any) -> bool:
    """Tell whether DeepSpeed has prepared a model; it is imported only where it runs."""
    deepspeed = sys.modules.get("deepspeed")
    return deepspeed is not None and isinstance(model, deepspeed.DeepSpeedEngine)


def check_engine(model: Any) -> Engine:
    """Return the engine of a prepared model. Raise RecipeError if it is not the requested one."""
    requested, runs = requested_engine(), engine_of(model)
    if requested is not runs:
        text = f"{requested.name} was requested, and {runs.name} would train. Nothing was trained."
        raise RecipeError([Problem("accelerate launch", text)])
    return runs


class NameEngine(TrainerCallback):
    """Prints the engine that trains, and stops where it is not the requested one."""

    def __init__(self, prepared: Callable[[], Any]):
        """Take what returns the prepared model."""
        self.prepared = prepared

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model that was prepared. Raise RecipeError, as `check_engine` does."""
        engine = check_engine(self.prepared())
        if engine is not ONE_PROCESS:
            say(f"  trained by {engine.name}")
