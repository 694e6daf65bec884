"""Private methods of transformers' and trl's trainers, given public names.

Each says why no callback or public method serves. tests/training/test_training_upstream.py fails
where a library renames one of them, or calls it otherwise, which would silently break a promise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from pipelines.models.generation import without_adapter_class


def without_tied(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a model without the second names of tied weights."""
    tied = without_adapter_class(model).all_tied_weights_keys
    return {name: value for name, value in state.items() if name not in tied}


def save_on_every_caller(model: Any) -> None:
    """Let `model.save_pretrained` write on any rank that asks for it, not on rank 0 alone.

    With `save_on_each_node` the first rank of each machine does, and transformers 5 writes nothing
    on those but rank 0: their checkpoints have no weights.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process


class HookedTrainer(Trainer):
    """A Trainer with a hook around each checkpoint and one before each update."""

    def writing_checkpoint(self) -> AbstractContextManager[None]:
        """Return the context in which a checkpoint of the current step is written."""
        return nullcontext()

    def check_gradients(self, norm: Any) -> None:
        """Look at the gradient norm, before clipping, of an update that is not yet made."""

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the current step.

        Callbacks can ask for one during training alone: nothing public writes one afterwards.
        """
        trained: Any = self.model
        self._save_checkpoint(trained, None)

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint, as a run that resumes from it does.

        The public way, `load_best_model_at_end`, wants the same steps between evaluations as
        between checkpoints, and knows no damage.
        """
        self._load_from_checkpoint(str(checkpoint))

    def prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Put a batch on the model's device.

        The public `prediction_step`, which does so first, cannot do a part of its work.
        """
        return dict(self._prepare_inputs(inputs))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the weights of a checkpoint, tied ones once.

        Where they are gathered from all processes, each name has a tensor of its own; no callback
        gets what is saved.
        """
        if state_dict is not None:
            state_dict = without_tied(self.model, state_dict)
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint inside `writing_checkpoint`.

        The callback `on_save` comes after: too late to unmark a checkpoint of the same step that
        is written again, and outside of what a full disk raises.
        """
        with self.writing_checkpoint():
            super()._save_checkpoint(model, trial)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm, checked by `check_gradients`.

        The callback `on_pre_optimizer_step` comes in time, but does not get the norm; to compute it
        again would cost a pass over all gradients, which are clipped by then.
        """
        untyped: Any = super()
        norm = untyped._get_grad_norm(model, grad_norm=grad_norm)
        self.check_gradients(norm)
        return norm


class WithoutTelemetry:
    """A base of trl's trainers that send nothing.

    trl sends the trainer's name and versions when a trainer is made. Its only switch is an
    environment variable of the Hub's client, which is read at import.
    """

    def _send_telemetry(self) -> None:
        """Send nothing."""


class WithEncodedRows:
    """A base of trl's DPOTrainer whose rows the task has encoded.

    SFTTrainer has an option for that; DPOTrainer tokenises whatever it gets.
    """

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        """Return the rows as they are."""
        return dataset
