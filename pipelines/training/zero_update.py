"""DeepSpeed's update, taken out of the backward pass. Needs DeepSpeed to be installed."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper

from pipelines.training.zero_upstream import gradient_norm, take_backward


class BackwardAlone(DeepSpeedEngineWrapper):  # type: ignore[misc]
    """Backward passes without DeepSpeed's update at the end of the last one."""

    def backward(self, loss: torch.Tensor, sync_gradients: bool = True, **options: Any) -> None:
        """Accumulate gradients, and reduce them over the processes if they are complete."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **options)

    def get_global_grad_norm(self) -> float:
        """Return the norm of the gradients of an update that is not yet made."""
        return gradient_norm(self.engine.optimizer)


class EngineOptimizer(DeepSpeedOptimizerWrapper):  # type: ignore[misc]
    """An optimizer whose step clips the gradients and makes the update, as everywhere else."""

    def __init__(self, engine: Any):
        super().__init__(engine.optimizer)
        self.engine = engine

    def step(self, closure: Any = None) -> None:
        """Make the update."""
        assert closure is None
        self.engine.step()


def separate_update(accelerator: Accelerator) -> EngineOptimizer:
    """Take the update out of the backward pass; return the optimizer that makes it.

    Accelerate makes it there, before a Trainer can look at the gradients.
    """
    engine = take_backward(accelerator, BackwardAlone)
    return EngineOptimizer(engine)
