"""The recipe's hyper-parameters, where a checkpoint brings others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.errors import Problem, RecipeError


@dataclass(frozen=True)
class Hyperparameters:
    """Options of an optimizer's groups, and the learning rates that its schedule scales."""

    groups: tuple[dict[str, Any], ...]
    base_rates: tuple[float, ...]

    @classmethod
    def of(cls, optimizer: Any, scheduler: Any) -> Hyperparameters:
        """Return those of a new optimizer and its scheduler."""
        groups = (
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        )
        return cls(tuple(groups), tuple(scheduler.state_dict()["base_lrs"]))

    def restore(self, optimizer: Any, scheduler: Any) -> None:
        """Give them back to an optimizer and a scheduler that have loaded a checkpoint.

        Moments and step stay those of the checkpoint.
        """
        step = scheduler.last_epoch
        factors = [factor(step) for factor in scheduler.lr_lambdas]
        rates = [rate * factor for rate, factor in zip(self.base_rates, factors, strict=True)]
        for group, options, rate in zip(optimizer.param_groups, self.groups, rates, strict=True):
            group.update(options)
            group["lr"] = rate
        loaded = scheduler.state_dict()
        scheduler.load_state_dict(
            loaded | {"base_lrs": list(self.base_rates), "_last_lr": list(rates)}
        )


MOST_BETWEEN_LOGS = 50
"""Steps between two logs where the recipe does not say how many."""


class RecipeOnResume(TrainerCallback):
    """Takes hyper-parameters, last step and intervals of a run from the recipe.

    A resumed run has those of its checkpoint until then. A fraction of all steps between two logs
    is limited to `MOST_BETWEEN_LOGS`.
    """

    def __init__(self) -> None:
        self.hyperparameters: Hyperparameters | None = None

    def remember(self, optimizer: Any, scheduler: Any) -> None:
        """Note what the recipe says, before a checkpoint is loaded."""
        self.hyperparameters = Hyperparameters.of(optimizer, scheduler)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Overrule a checkpoint. Raise RecipeError for one that is beyond the last step."""
        untyped: Any = state
        untyped.compute_steps(args, state.max_steps)
        if args.logging_steps < 1:
            untyped.logging_steps = min(untyped.logging_steps, MOST_BETWEEN_LOGS)
        if state.global_step > state.max_steps:
            name = "max_steps" if args.max_steps > 0 else "num_train_epochs"
            text = f"the run would end at step {state.max_steps:,}, but its checkpoint is of step "
            raise RecipeError([Problem(f"train.{name}", f"{text}{state.global_step:,}.")])
        if state.global_step:
            assert self.hyperparameters is not None
            self.hyperparameters.restore(kwargs["optimizer"], kwargs["lr_scheduler"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before a step where the checkpoint is of the last one: Trainer would train it."""
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
