"""Choose by the validation rows: checkpoints of the best evaluations, and early stopping."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from pipelines.console import say
from pipelines.recipe.values import Train


def choosing_callbacks(train: Train) -> Iterator[TrainerCallback]:
    """Yield the callbacks that a recipe's choices need."""
    if train.keep == "best":
        yield SaveBest()
    if train.early_stopping_patience is not None:
        yield EarlyStopping(train.early_stopping_patience, train.early_stopping_threshold)


class SaveBest(TrainerCallback):
    """Write a checkpoint at each evaluation that is better than all before.

    So the best one has a checkpoint, whatever the steps between two others.
    """

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Ask for a checkpoint. Trainer updates `best_metric` after this."""
        better = operator.gt if args.greater_is_better else operator.lt
        value = (metrics or {})[f"eval_{args.metric_for_best_model}"]
        if state.global_step and (state.best_metric is None or better(value, state.best_metric)):
            control.should_save = True


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping; a resumed run takes its count from the checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the patience from the checkpoint, if there is one."""
        if state.global_step:
            states: Any = state.stateful_callbacks
            recorded = states[type(self).__name__]["attributes"]
            self.early_stopping_patience_counter = recorded["early_stopping_patience_counter"]

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before a step where the checkpoint is of a run that had stopped."""
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Stop, with a checkpoint, once there is no patience left."""
        if not state.global_step:
            return
        untyped: Any = super()
        untyped.on_evaluate(args, state, control, metrics=metrics, **kwargs)
        if control.should_training_stop and state.global_step < state.max_steps:
            control.should_save = args.save_strategy != "no"
            say(
                f"  stopped early at step {state.global_step:,} of {state.max_steps:,}: "
                f"{self.early_stopping_patience} evaluations in a row were not better"
            )
