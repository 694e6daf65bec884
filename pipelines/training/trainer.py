"""The Trainer of every run: complete checkpoints, finite steps, an order of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer

from pipelines.errors import NonFiniteError, Problem, RecipeError
from pipelines.results.disk import explain_disk_errors
from pipelines.training.checkpoints import MARKER, mark_complete, rotate
from pipelines.training.row_order import RowOrder
from pipelines.training.signals import without_signals

NAMED = 16  # rows of a failed step that a message names


class RecipeTrainer(Trainer):
    """A Trainer that marks checkpoints complete, and stops at what is not finite.

    Overrides where no callback can serve: a callback sees a checkpoint after older ones have been
    deleted, and a gradient after the optimizer has taken it.
    """

    def __init__(
        self,
        *,
        identity: dict[str, Any],
        where: Callable[[int], str],
        train_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        **options: Any,
    ):
        """Take another collator for training, where `data_collator` is for evaluation alone."""
        super().__init__(**options)
        self.train_collator = train_collator
        self.identity = identity
        self.where = where  # names a training row
        self.step_rows: list[torch.Tensor] = []
        self.step_losses: list[torch.Tensor] = []

    def get_train_dataloader(self) -> Any:
        in_evaluation = self.data_collator
        self.data_collator = self.train_collator or in_evaluation
        # The number of each row goes through the loader with it: a step that fails names its rows.
        if isinstance(self.train_dataset, list):
            self.train_dataset = [row | {"row": i} for i, row in enumerate(self.train_dataset)]
            self.data_collator = with_rows(self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = in_evaluation

    def _get_dataloader(self, *arguments: Any, **options: Any) -> Any:
        loader: Any = super()._get_dataloader(*arguments, **options)
        inner = loader.base_dataloader
        if inner.num_workers:
            inner._get_iterator = partial(without_signals, inner._get_iterator)
        return loader

    def get_batch_samples(self, *arguments: Any) -> Any:
        batches, num_items = super().get_batch_samples(*arguments)
        self.step_rows = [batch.pop("row") for batch in batches if "row" in batch]
        self.step_losses = []
        return batches, num_items

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **options)
        self.step_losses.append(loss)
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, Sized):  # a stream
            return None
        return RowOrder(len(dataset), seed=self.args.seed, epoch=lambda: int(self.state.epoch or 0))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate counts all parameters again at each step and nothing reads it."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir or ".")
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        unwrapped: Any = self.model
        trained = sum(p.numel() for p in unwrapped.parameters() if p.requires_grad)
        told = "The checkpoint before it is whole; run the same command again to resume from it."
        with explain_disk_errors(checkpoint, num_bytes=3 * 4 * trained, advice=told):
            if self.accelerator.is_main_process:
                (checkpoint / MARKER).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                mark_complete(checkpoint, self.identity)
                rotate(folder)
        self.accelerator.wait_for_everyone()

    def keep_last_step(self) -> None:
        """Write a checkpoint of the last step, unless there is one."""
        if not self.has_checkpoint():
            self._save_checkpoint(self.model, None)

    def has_checkpoint(self) -> bool:
        """Tell whether there is a complete checkpoint of the last step."""
        folder = Path(self.args.output_dir or ".")
        return (folder / f"checkpoint-{self.state.global_step}" / MARKER).is_file()

    def _init_training_state(self, *arguments: Any, **options: Any) -> Any:
        """Take the step and the log from the checkpoint, the end and the intervals from the recipe.

        Raise RecipeError for a checkpoint that is beyond the end.
        """
        places = super()._init_training_state(*arguments, **options)
        self.state.compute_steps(self.args, self.state.max_steps)
        step, end = self.state.global_step, self.state.max_steps
        if step > end:
            name = "max_steps" if self.args.max_steps > 0 else "num_train_epochs"
            text = f"the run would end at step {end:,}, but its checkpoint is of step {step:,}."
            raise RecipeError([Problem(f"train.{name}", text)])
        return places

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take moments and step from the checkpoint, and every hyper-parameter from the recipe."""
        optimizer, scheduler = self.optimizer, self.lr_scheduler
        assert optimizer is not None and scheduler is not None
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        rates = scheduler.state_dict()["base_lrs"]
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, options in zip(optimizer.param_groups, groups, strict=True):
            group.update(options)
        step = scheduler.last_epoch
        found = [rate * at(step) for rate, at in zip(rates, scheduler.lr_lambdas, strict=True)]
        scheduler.load_state_dict(scheduler.state_dict() | {"base_lrs": rates, "_last_lr": found})
        for group, rate in zip(optimizer.param_groups, found, strict=True):
            group["lr"] = rate

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """Do nothing where the checkpoint was of the last step: Trainer would train one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **options)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        # (ranks) summed, so that all ranks stop at the same step
        loss = float(self.accelerator.reduce(torch.stack(self.step_losses).sum()))
        scaled = self.accelerator.scaler is not None  # then a gradient may overflow now and then
        if not math.isfinite(loss) or not (scaled or math.isfinite(float(norm))):
            assert self.optimizer is not None
            rate = self.optimizer.param_groups[0]["lr"]
            rows = gather_object([int(row) for rows in self.step_rows for row in rows])
            named = ", ".join(self.where(row) for row in rows[:NAMED])
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            raise NonFiniteError(
                f"step {self.state.global_step + 1}: the gradient norm is {float(norm)}, at a "
                f"learning rate of {rate:.3g}, and the loss {loss}; the update was not made. Lower "
                "--train.learning-rate, or warm up for longer."
                + (f"\nIt was the step of {named}{more}." if rows else "")
            )
        return norm


def with_rows(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    """Return a collator that keeps the numbers of rows that have one."""

    def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = collate(rows)
        if "row" in rows[0]:
            inputs["row"] = torch.tensor([row["row"] for row in rows])
        return inputs

    return batch


def score_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the Trainer's metrics without its prefix and its clocks."""
    dropped = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    stripped = {key.removeprefix("eval_"): value for key, value in metrics.items()}
    return {key: value for key, value in stripped.items() if key not in (*dropped, "epoch")}
