"""Print a line for each logged step and each evaluation."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.console import console


class StepLog(TrainerCallback):
    """Prints loss, gradient norm and learning rate of a step, and the metric of an evaluation."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        step = f"  step {state.global_step:,} of {state.max_steps:,}: "
        if "grad_norm" in logs:
            line = f"loss {logs['loss']:.4f}, gradient norm {logs['grad_norm']:.3g}, "
            console().print(f"{step}{line}learning rate {logs['learning_rate']:.3g}", markup=False)
        elif "eval_primary" in logs and 0 < state.global_step < state.max_steps:
            name = logs["eval_primary"]
            console().print(f"{step}{name} {logs[f'eval_{name}']:.4f}", markup=False)
