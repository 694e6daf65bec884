"""Private methods of transformers' and trl's trainers, given public names.

Each says why no callback or public method serves. tests/training/test_training_upstream.py fails
where a library renames one of them, or calls it otherwise, which would silently break a promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from pipelines.models.generation import without_adapter_class
from pipelines.process import bf16_requested
from pipelines.training.checkpoints import num_trained
from pipelines.training.engines import ZERO2, ZERO3, requested_engine
from pipelines.training.zero import (
    announce,
    announced,
    gathered_optimizer,
    gathered_state,
    load_optimizer,
    load_weights,
)
from pipelines.training.zero_config import complete_config


def without_tied(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a model without the second names of tied weights."""
    tied = without_adapter_class(model).all_tied_weights_keys
    return {name: value for name, value in state.items() if name not in tied}


@contextmanager
def scorable(model: Any) -> Iterator[None]:
    """Let a Trainer take a model whose own weights are stored in few bits, to score it.

    It refuses such a model without an adapter when it is made, though nothing is trained.
    """
    quantized = getattr(model, "is_quantized", False)
    if quantized:
        model.is_quantized = False
    try:
        yield
    finally:
        if quantized:
            model.is_quantized = True


def use_one_device(arguments: TrainingArguments) -> None:
    """Let a process train on one device where it sees several.

    transformers would wrap the model in DataParallel, which multiplies the batch and computes
    neither our losses nor packed rows right. The number has no public setter.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


def save_on_every_caller(model: Any) -> None:
    """Let `model.save_pretrained` write on any rank that asks for it, not on rank 0 alone.

    With `save_on_each_node` the first rank of each machine does, and transformers 5 writes nothing
    on those but rank 0: their checkpoints have no weights.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process


def leaves_out_updates(optimizer: Any) -> bool:
    """Tell whether an optimizer makes no update on a device where its `found_inf` is 1 there.

    torch's gradient scaler asks its fused optimizers by this name.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


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


class WithZero(HookedTrainer):
    """A HookedTrainer whose checkpoints under DeepSpeed are those of every other engine.

    transformers' own are in parts, which can be resumed by as many processes alone, and its weights
    are rounded to bfloat16.
    """

    parameter_groups: list[dict[str, Any]]

    def create_accelerator_and_postprocess(self) -> None:
        """Let the libraries know of DeepSpeed only where its engine runs.

        Autocast and buckets are set in DeepSpeed's config: the Trainer has no arguments for them.
        """
        settings: Any = self.args
        if requested_engine() in (ZERO2, ZERO3):
            complete_config(
                settings.deepspeed_plugin.deepspeed_config,
                num_trained=num_trained(self.model),
                bf16=bf16_requested(),
            )
        super().create_accelerator_and_postprocess()
        announce(None)
        if self.is_deepspeed_enabled:  # Accelerate would take over the number with a warning
            self.accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps

    def create_optimizer(self, *arguments: Any) -> Any:
        """Note the groups of parameters: DeepSpeed replaces these, and drops a group of none."""
        optimizer = super().create_optimizer(*arguments)
        self.parameter_groups = [dict(group) for group in optimizer.param_groups]
        return optimizer

    def engine_running(self) -> AbstractContextManager[None]:
        """Return the context in which batches go through the engine."""
        if not self.is_deepspeed_enabled:
            return nullcontext()
        return announced(self.accelerator.state.deepspeed_plugin.hf_ds_config)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model trains: Accelerate knows none of DeepSpeed."""
        if self.is_deepspeed_enabled and bf16_requested():
            return torch.autocast(self.args.device.type, torch.bfloat16)
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        """Take the update out of the backward pass first.

        Autocast leaves outputs in bfloat16; Accelerate converts them, but not those of DeepSpeed.
        """
        if self.is_deepspeed_enabled:
            from pipelines.training.zero_update import separate_update  # needs DeepSpeed

            self.optimizer = separate_update(self.accelerator)
            if bf16_requested():
                trained: Any = self.model
                trained.forward = convert_outputs_to_fp32(trained.forward)
        return super().create_scheduler(*arguments, **options)

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint."""
        if self.is_deepspeed_enabled:
            load_weights(self.model_wrapped, lambda: super(WithZero, self).load_weights(checkpoint))
        else:
            super().load_weights(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole weights."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            return
        only_trained = hasattr(self.model, "get_base_model")
        keep = self.args.should_save
        state = gathered_state(self.model_wrapped, only_trained=only_trained, keep=keep)
        if keep:
            self._save(output_dir, state_dict=state)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Load weights and optimizer after DeepSpeed has taken them over.

        transformers looks for DeepSpeed's own files.
        """
        untyped: Any = super()
        zero = self.is_deepspeed_enabled
        checkpoint = None if zero else resume_from_checkpoint
        prepared = untyped._prepare_for_training(max_steps, train_dataloader, checkpoint)
        if zero and resume_from_checkpoint is not None:
            self.load_weights(Path(resume_from_checkpoint))
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write the state of the whole optimizer, as without DeepSpeed."""
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        keep = self.args.should_save
        state = gathered_optimizer(self.model_wrapped, self.parameter_groups, keep=keep)
        if keep:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Read what `_save_optimizer_and_scheduler` wrote, or another engine.

        That may have had a group without parameters, too, which DeepSpeed drops.
        """
        if not self.is_deepspeed_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder, scheduler = Path(checkpoint), cast(Any, self.lr_scheduler)
        saved = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        load_optimizer(self.model_wrapped, self.parameter_groups, saved)
        schedule = torch.load(folder / SCHEDULER_NAME, weights_only=True)
        schedule["lr_lambdas"] = schedule["lr_lambdas"][: len(scheduler.lr_lambdas)]
        scheduler.load_state_dict(schedule)


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
