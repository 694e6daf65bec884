"""trl's trainers, with the checkpoints, the precision and the scores of every other run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from pipelines.models.generation import continue_prompts, without_adapter_class
from pipelines.tasks.base import Features
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.training.log_probs import use_right_log_probs
from pipelines.training.trainer import RecipeTrainer, with_rows

OWN_DEFAULTS = {"bf16": False, "activation_checkpointing": False}
"""What trl switches on by itself; the Accelerate config owns the precision."""


class TrlTrainer(RecipeTrainer):
    """What both of trl's trainers are kept from: another precision, a card and telemetry."""

    def __init__(self, *, model: Any, **options: Any):
        # trl casts an adapter on a quantised base to bfloat16, whatever the launcher was asked for
        trained = {n: p.data for n, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, **options)
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.data = trained[name].to(parameter.device)
        use_right_log_probs(without_adapter_class(model))

    def get_train_dataloader(self) -> Any:
        """Return a loader that names its rows too, where each is one example."""
        rows: Any = self.train_dataset
        if "seq_lengths" not in rows.column_names:
            self.train_dataset = rows.add_column("row", list(range(len(rows))))
            self.data_collator = with_rows(self.data_collator)
        return super().get_train_dataloader()

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Write none: `publish` writes the card of a result."""

    def _send_telemetry(self) -> None:
        """Send none."""


class InstructionTrainer(TrlTrainer, SFTTrainer):
    """trl's SFTTrainer on rows that the task has encoded, scored by the replies it writes."""

    def __init__(self, *, task: InstructionTuning, held_out: Features, **options: Any):
        super().__init__(**options)
        self.pad_token_id = int(options["processing_class"].pad_token_id)
        self.task = task
        self.held_out = held_out

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return rows padded one by one, also where training packs them."""
        in_training = self.data_collator
        self.data_collator = self.task.collate(self.pad_token_id)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = in_training

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return the loss and, as predictions, (batch, 2): summed loss and learned tokens."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, fused_lm_head=True)
        counts = outputs.label_mask.sum(1)
        rows = torch.stack([-outputs.log_probs.float().sum(1), counts.float()], dim=1)
        return rows[:, 0].sum() / counts.sum(), rows, counts

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """Add the score of the generated replies, which is the primary one."""
        output = super().evaluation_loop(*arguments, **options)
        prefix = options["metric_key_prefix"]
        process, count = self.accelerator.process_index, self.accelerator.num_processes
        prompts = [list(prompt.ids) for prompt in self.held_out.context]
        with self.compute_loss_context_manager():
            written = continue_prompts(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                prompts[process::count],
                self.task.generation,
                batch_size=self.args.per_device_eval_batch_size,
                seed=self.args.seed,
            )
        of_each = gather_object([written])
        replies = [of_each[i % count][i // count] for i in range(len(prompts))]
        score = self.task.score_replies(replies, self.held_out).as_metrics()
        assert output.metrics is not None
        named = {f"{prefix}_{name}": value for name, value in score.items()}
        return output._replace(metrics=output.metrics | named)


class PreferenceTrainer(TrlTrainer, DPOTrainer):
    """trl's DPOTrainer on pairs that the task has encoded; the bare base is the reference."""

    def __init__(self, *, model: Any, **options: Any):
        super().__init__(model=model, **options)
        if "ref" in model.peft_config:  # trl's copy of the adapter as it is now
            model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        """Return the pairs as they are: the task has encoded them."""
        return dataset

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return the loss and, as predictions, (pairs, 4) log-probabilities.

        They are of the chosen and of the rejected reply, then of both under the reference.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.compute_loss_context_manager():
            log_probs = model(**kept, labels=labels, fused_lm_head=True).log_probs
        policy = log_probs.float().sum(1).chunk(2)
        reference = self.compute_ref_log_probs(model, inputs)
        pairs = torch.stack([*policy, *(half.float() for half in reference)], dim=1)
        margins = (pairs[:, 0] - pairs[:, 2]) - (pairs[:, 1] - pairs[:, 3])
        return -F.logsigmoid(self.beta * margins).mean(), pairs, pairs[:, 0]


def trl_trainer(
    task: InstructionTuning | PreferenceTuning,
    arguments: Callable[..., Any],
    *,
    held_out: Features,
    **options: Any,
) -> RecipeTrainer:
    """Return the trainer of a task; `arguments` makes a config of a class and its own options.

    Without rows to train on, trl is shown the evaluation rows.
    """
    options["eval_dataset"] = Dataset.from_list(options["eval_dataset"])
    if options["train_dataset"] is None:
        options["train_dataset"] = options["eval_dataset"]
    else:
        options["train_dataset"] = Dataset.from_list(options["train_dataset"])
    defaults = OWN_DEFAULTS | {"pad_to_multiple_of": task.pad_to_multiple_of}
    if isinstance(task, InstructionTuning):
        config = arguments(
            SFTConfig,
            max_length=task.max_length,
            packing=task.packing,
            eval_packing=False,
            label_smoothing_factor=task.label_smoothing,
            **defaults,
        )
        return InstructionTrainer(args=config, task=task, held_out=held_out, **options)
    config = arguments(DPOConfig, beta=task.beta, max_length=None, **defaults)
    return PreferenceTrainer(args=config, **options)
