"""trl's trainers, with the checkpoints, the precision and the scores of every other run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn import functional
from torch.utils.data import Subset
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from pipelines.data.encoded_rows import EncodedRows
from pipelines.models.generation import continue_prompts, without_adapter_class
from pipelines.tasks.base import Features, RowResult, Task
from pipelines.tasks.generation import Continuation
from pipelines.training.loaders import ROW, NumberedRows
from pipelines.training.log_probs import use_right_log_probs
from pipelines.training.parts import TrainerParts
from pipelines.training.trainer import RecipeTrainer, Scored, with_metrics
from pipelines.training.upstream import WithEncodedRows, WithoutTelemetry

OWN_DEFAULTS = {"bf16": False}
"""What trl switches on by itself; the Accelerate config owns the precision."""


class TrlTrainer(WithoutTelemetry, RecipeTrainer):
    """A base of trl's trainers that change no precision and write no card."""

    def __init__(self, *, model: Any, **options: Any):
        # trl casts an adapter on a quantised base to bfloat16, whatever the launcher requests
        trained = {n: p.data for n, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, **options)
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.data = trained[name].to(parameter.device)
        use_right_log_probs(without_adapter_class(model))

    def rows_to_score(self, split: str) -> Dataset:
        """Return the encoded rows of a split as trl's collators take them."""
        return arrow_table(super().rows_to_score(split))

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Write none: `publish` writes the card of a result."""


class WithSftLoss:
    """A base of trl's SFTTrainer whose loss is trl's without the metrics of each batch.

    For these the host waits for the device five times a batch, and the ranks for each other.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any
    ) -> Any:
        """Return the loss of the learned tokens, divided by those of the global batch."""
        trainer: Any = self
        num_items = options["num_items_in_batch"]
        if trainer.label_smoother is None:
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
            loss = -outputs.log_probs.sum() / num_items.clamp(min=1)
        else:
            labels = inputs["labels"]
            tokens = {name: value for name, value in inputs.items() if name != "labels"}
            outputs = model(**tokens, use_cache=False)
            loss = trainer.label_smoother(
                outputs, labels, shift_labels=True, num_items_in_batch=num_items
            )
        loss = loss * trainer.accelerator.num_processes  # over which DDP takes the mean
        return (loss, outputs) if return_outputs else loss


class WithDpoLoss:
    """A base of trl's DPOTrainer whose loss is trl's without the metrics of each batch.

    For these the host waits for the device 30 times a batch, and the ranks for each other.
    """

    def pair_log_probs(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the log-probabilities of pairs, (pairs, 4).

        They are of the chosen and of the rejected reply, then of both under the reference.
        """
        trainer: Any = self
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        log_probs = model(**tokens, labels=labels, use_cache=False, fused_lm_head=True).log_probs
        policy = log_probs.float().sum(1).chunk(2)
        reference = trainer.compute_ref_log_probs(model, inputs)
        return torch.stack([*policy, *(half.float() for half in reference)], dim=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any
    ) -> Any:
        """Return the mean loss of the pairs."""
        trainer: Any = self
        pairs = self.pair_log_probs(model, inputs)
        loss = dpo_loss(pairs, trainer.beta)
        return (loss, pairs) if return_outputs else loss


def dpo_loss(pairs: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the mean loss of (pairs, 4) log-probabilities."""
    margins = (pairs[:, 0] - pairs[:, 2]) - (pairs[:, 1] - pairs[:, 3])
    return -functional.logsigmoid(beta * margins).mean()


class InstructionTrainer(TrlTrainer, WithSftLoss, SFTTrainer):
    """trl's SFTTrainer on rows that the task has encoded, scored by the replies it writes."""

    def __init__(self, *, task: Task, **options: Any):
        super().__init__(**options)
        self.task = task
        self.replies: dict[str, list[Continuation]] = {}

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return the loss and, as predictions, (batch, 2): summed loss and learned tokens."""
        inputs = self.prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, fused_lm_head=True)
        counts = outputs.label_mask.sum(1)
        rows = torch.stack([-outputs.log_probs.float().sum(1), counts.float()], dim=1)
        return rows[:, 0].sum() / counts.sum(), rows, counts

    def evaluation_loop(self, *arguments: Any, **options: Any) -> EvalLoopOutput:
        """Add the score of the generated replies, which is the primary one."""
        output = super().evaluation_loop(*arguments, **options)
        prefix = options["metric_key_prefix"]
        held_out = self.splits[prefix].features
        with self.progress.phase("evaluation", f"writing {held_out.num_rows:,} replies"):
            self.replies[prefix] = self.write_replies(held_out)
        score = self.task.score_replies(self.replies[prefix], held_out)
        return with_metrics(output, prefix, score.as_metrics())

    def row_results(self, split: str, scored: Scored) -> list[RowResult]:
        """Return the results of the replies that the last evaluation of a split wrote."""
        return self.task.reply_results(self.replies[split], self.splits[split].features)

    def write_replies(self, held_out: Features) -> list[Continuation]:
        """Write a reply to each prompt, shared among the processes."""
        process, count = self.accelerator.process_index, self.accelerator.num_processes
        prompts = [list(prompt.ids) for prompt in held_out.context]
        with self.whole_model() as model, self.compute_loss_context_manager():
            written = continue_prompts(
                model,
                self.processing_class,
                prompts[process::count],
                self.task.default_generation,
                batch_size=self.args.per_device_eval_batch_size,
                seed=self.args.seed,
            )
        of_each = gather_object([written])
        return [of_each[i % count][i // count] for i in range(len(prompts))]


class PreferenceTrainer(WithEncodedRows, TrlTrainer, WithDpoLoss, DPOTrainer):
    """trl's DPOTrainer on pairs that the task has encoded; the bare base is the reference."""

    def __init__(self, *, model: Any, **options: Any):
        super().__init__(model=model, **options)
        if "ref" in model.peft_config:  # trl's copy of the adapter as it is now
            model.delete_adapter("ref")

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return the loss and, as predictions, the log-probabilities of pairs."""
        inputs = self.prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            pairs = self.pair_log_probs(model, inputs)
        return dpo_loss(pairs, self.beta), pairs, pairs[:, 0]


def instruction_trainer(parts: TrainerParts) -> RecipeTrainer:
    """Return the trainer of replies from the parts of `build_trainer`."""
    task = parts.task
    arguments = parts.arguments(
        SFTConfig,
        eval_packing=False,
        pad_to_multiple_of=task.pad_to_multiple_of,
        dataset_kwargs={"skip_prepare_dataset": not task.isolates_rows},  # the task has cut them
        **OWN_DEFAULTS,
        **task.trainer_options(),
    )
    return InstructionTrainer(
        args=arguments,
        task=task,
        processing_class=parts.tokenizer,
        eval_collator=task.collate(parts.pad_token_id),  # also where training packs the rows
        **arrow_tables(parts.options, in_memory=task.isolates_rows),
    )


def preference_trainer(parts: TrainerParts) -> RecipeTrainer:
    """Return the trainer of preferences from the parts of `build_trainer`."""
    task = parts.task
    arguments = parts.arguments(
        DPOConfig,
        max_length=None,
        pad_to_multiple_of=task.pad_to_multiple_of,
        **OWN_DEFAULTS,
        **task.trainer_options(),
    )
    return PreferenceTrainer(
        args=arguments, processing_class=parts.tokenizer, **arrow_tables(parts.options)
    )


def arrow_tables(options: dict[str, Any], *, in_memory: bool = False) -> dict[str, Any]:
    """Return a trainer's options with both datasets as trl takes them.

    Without rows to train on, trl gets the evaluation rows. What trl makes of rows that are not
    `in_memory`, `datasets` would write next to their file.
    """
    held_out = arrow_table(options["eval_dataset"], in_memory=in_memory)
    train = options["train_dataset"]
    return options | {
        "eval_dataset": held_out,
        "train_dataset": held_out if train is None else arrow_table(train, in_memory=in_memory),
    }


def arrow_table(rows: Any, *, in_memory: bool = False) -> Dataset:
    """Return encoded rows as trl takes them; those of a file stay there, unless `in_memory`."""
    if isinstance(rows, NumberedRows) and isinstance(rows.rows, EncodedRows):
        table = Dataset.from_file(str(rows.rows.path), in_memory=in_memory)
        return table.add_column(ROW, np.arange(len(table)))
    if isinstance(rows, Subset) and isinstance(rows.dataset, EncodedRows):
        table = Dataset.from_file(str(rows.dataset.path), in_memory=in_memory)
        return table.select(rows.indices, keep_in_memory=True)
    return Dataset.from_list(rows)
