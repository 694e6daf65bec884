"""Updates that are not finite: the device leaves them out, and the host hears of it a step later.

A host that looked at each gradient norm before its update would wait for the device in each step,
and the device then for the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import gather_object

from pipelines.errors import NonFiniteError
from pipelines.training.engines import DDP, ONE_PROCESS
from pipelines.training.host_copy import HostCopy
from pipelines.training.running_engine import engine_of
from pipelines.training.upstream import WithZero, leaves_out_updates

MAX_NAMED = 16  # rows of a failed step that a message names


@dataclass(frozen=True)
class Update:
    """An update whose gradient norm the host has yet to see."""

    step: int
    """The step that it makes."""
    learning_rates: Sequence[float]
    """Of each group of parameters."""
    read_norm: Callable[[], float]
    """Returns the gradient norm; waits for it."""
    losses: Sequence[torch.Tensor]
    """Of the batches of this process."""
    rows: Sequence[torch.Tensor]
    """Row numbers of these batches."""
    schedule: dict[str, Any] | None = None
    """State of the learning rate schedule, where the update is looked at once that has moved on."""


class FiniteUpdates(WithZero):
    """A Trainer that makes no update whose gradient or loss is not finite on any rank, and stops.

    Where the optimizer can leave the update out by itself, the host does not wait for the norm: it
    looks at it at the next update, or before a log, a checkpoint or an evaluation.
    """

    def __init__(self, *, describe_row: Callable[[int], str], **options: Any):
        """Take what names a training row by its number."""
        super().__init__(**options)
        self.describe_row = describe_row
        self.step_rows: list[torch.Tensor] = []
        self.step_losses: list[torch.Tensor] = []
        self.last_update: Update | None = None

    def begin_step(self, rows: list[torch.Tensor]) -> None:
        """Note the row numbers of a step's batches."""
        self.step_rows, self.step_losses = rows, []

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self.step_losses.append(loss)
        return loss

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        """Return the loss; one that is not finite gives no finite gradient."""
        result = super().compute_loss(*arguments, **options)
        poison_gradients(result[0] if isinstance(result, tuple) else result)
        return result

    def check_gradients(self, norm: Any) -> None:
        """Let no update be made that is not finite, on any rank; stop then.

        Where the optimizer leaves it out by itself, this raises NonFiniteError a step later, or
        before a log, a checkpoint or an evaluation; else at once.
        """
        outer: Any = self.optimizer
        optimizer = innermost(outer)
        update = Update(
            step=self.state.global_step + 1,
            learning_rates=[group["lr"] for group in outer.param_groups],
            read_norm=partial(float, norm),
            losses=self.step_losses,
            rows=self.step_rows,
        )
        if not self.update_can_wait(optimizer):
            self.check_update(update)
            return
        leave_out_if_not_finite(optimizer, norm)
        scheduler: Any = self.lr_scheduler
        schedule = scheduler.state_dict()
        update = replace(update, read_norm=HostCopy(norm).read, schedule=schedule)
        self.check_last_update()
        self.last_update = update

    def update_can_wait(self, optimizer: Any) -> bool:
        """Tell whether an optimizer leaves out updates that are not finite, on every rank.

        Those of sharded parameters do not, and a gradient scaler decides by itself.
        """
        whole = engine_of(self.model_wrapped) in (ONE_PROCESS, DDP)
        return whole and self.accelerator.scaler is None and leaves_out_updates(optimizer)

    def check_last_update(self) -> None:
        """Raise NonFiniteError on every rank if the last update was left out."""
        update, self.last_update = self.last_update, None
        if update is not None:
            self.check_update(update)

    def check_update(self, update: Update) -> None:
        """Raise NonFiniteError on every rank for an update that is not finite, and was not made."""
        norm = update.read_norm()
        scaled = self.accelerator.scaler is not None  # then a gradient may overflow now and then
        if math.isfinite(norm) or (scaled and math.isfinite(self.loss_of(update))):
            return
        self.return_to(update)
        rows = gather_object([int(row) for rows in update.rows for row in rows])
        named = ", ".join(self.describe_row(row) for row in rows[:MAX_NAMED])
        more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
        raise NonFiniteError(
            f"step {update.step}: the gradient norm is {norm}, at a learning rate of "
            f"{update.learning_rates[0]:.3g}, and the loss {self.loss_of(update)}; the update was "
            "not made. Lower --train.learning-rate, or warm up for longer."
            + (f"\nIt was the step of {named}{more}." if rows else "")
        )

    def loss_of(self, update: Update) -> float:
        """Return the mean over the ranks of an update's loss; every rank must ask."""
        return float(self.accelerator.reduce(torch.stack([*update.losses]).sum()))

    def return_to(self, update: Update) -> None:
        """Count an update that was left out, and those after it, as never made."""
        if update.schedule is None:
            return
        optimizer, scheduler = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
        self.state.global_step = update.step - 1
        scheduler.load_state_dict(update.schedule)
        for group, rate in zip(optimizer.param_groups, update.learning_rates, strict=True):
            group["lr"] = rate


def poison_gradients(loss: torch.Tensor) -> None:
    """Let a loss that is not finite make its gradients NaN, and so the norm on every process.

    A loss can be infinite with finite gradients. With this hook the norm, which all processes have
    in common, tells of the losses of each.
    """
    if loss.requires_grad:
        hooked: Any = loss
        hooked.register_hook(partial(_times_one_or_nan, loss.detach()))


def _times_one_or_nan(loss: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return gradient * (1 + 0 * loss)


def innermost(optimizer: Any) -> Any:
    """Return an optimizer without Accelerate's class around it."""
    return getattr(optimizer, "optimizer", optimizer)


def leave_out_if_not_finite(optimizer: Any, norm: torch.Tensor) -> None:
    """Let an optimizer leave its next update out if a gradient norm is not finite.

    It leaves out all later ones, too: what is left is the state before the update.
    """
    assert leaves_out_updates(optimizer)
    failed = (~torch.isfinite(norm)).float()
    before = getattr(optimizer, "found_inf", None)
    optimizer.found_inf = failed if before is None else torch.maximum(before, failed)
