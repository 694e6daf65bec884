"""The Trainer of every run: complete checkpoints, finite steps, an order of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput

from pipelines.errors import CheckpointError
from pipelines.models.compiling import not_compiled
from pipelines.process import trimming_memory
from pipelines.reporting.progress import RunProgress
from pipelines.results.disk import explain_disk_errors
from pipelines.tasks.base import RowResult
from pipelines.training import zero
from pipelines.training.checkpoints import MARKER, find_damage, mark_complete, num_trained, rotate
from pipelines.training.hyperparameters import RecipeOnResume
from pipelines.training.loaders import ROW, TOKENS, Collate, WithRowNumbers, data_loader
from pipelines.training.parts import ScoredSplit, no_metrics
from pipelines.training.precision import precision_of_training
from pipelines.training.row_order import RowOrder
from pipelines.training.running_engine import NameEngine, engine_of, is_zero
from pipelines.training.sharding import gathered_state, in_own_type, unsharded
from pipelines.training.stream_batches import BLOCKS, StreamBatches, StreamEpochs
from pipelines.training.throughput import Throughput
from pipelines.training.updates import FiniteUpdates
from pipelines.training.upstream import save_on_every_caller


class RecipeTrainer(FiniteUpdates):
    """A Trainer that marks checkpoints complete, and stops at what is not finite.

    On resume the recipe decides on every hyper-parameter, not the checkpoint.
    """

    def __init__(
        self,
        *,
        identity: dict[str, Any],
        splits: Mapping[str, ScoredSplit],
        describe_row: Callable[[int], str],
        progress: RunProgress,
        eval_collator: Collate | None = None,
        **options: Any,
    ):
        """Take what checkpoints record, and what names a training row by its number.

        `splits` are those that `score` can score. `progress` shows evaluations and checkpoints, and
        counts their time. `data_collator` makes the batches of training, and of evaluation without
        `eval_collator`.
        """
        super().__init__(describe_row=describe_row, compute_metrics=no_metrics, **options)
        self.own_forward = vars(self.model).get("forward")
        if self.args.save_on_each_node:
            save_on_every_caller(self.model)
        if self.accelerator.ddp_handler is not None:  # gradients need no copy to be reduced
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self.identity = identity
        self.splits = splits
        self.progress = progress
        self.throughput = Throughput(progress)
        self.eval_collator = eval_collator
        self.recipe_on_resume = RecipeOnResume()
        self.add_callback(NameEngine(lambda: self.model_wrapped))
        self.add_callback(self.recipe_on_resume)
        self.add_callback(self.throughput)
        self.stream: StreamBatches | None = None
        rows: Any = self.train_dataset
        if rows is not None and not isinstance(rows, Sized):
            self.stream = StreamBatches(rows, self.args, self.train_collator)
            self.add_callback(StreamEpochs())

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train, as a phase of the run."""
        if self.stream and (checkpoint := options.get("resume_from_checkpoint")):
            self.stream.load(Path(checkpoint))
        phase = self.progress.phase("training", "training", has_lines=True)
        with phase, self.engine_running(), precision_of_training(self.model):
            output = super().train(*arguments, **options)
            self.check_last_update()
        if self.stream:
            self.stream.gather()
        return output

    @property
    def train_collator(self) -> WithRowNumbers:
        """Return what makes batches of training rows."""
        return WithRowNumbers(self.data_collator, self.splits["eval"].task.num_tokens)

    def get_train_dataloader(self) -> Any:
        """Return this process's batches, in the order of RowOrder, or of a stream."""
        if self.stream:
            return self.stream
        rows: Any = self.train_dataset
        loader = data_loader(
            self.args,
            rows,
            self.train_collator,
            batch_size=self.args.train_batch_size,
            sampler=RowOrder(len(rows), self.args.seed, epoch=lambda: int(self.state.epoch or 0)),
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return this process's batches, in the order of the rows."""
        loader = data_loader(
            self.args,
            self.eval_dataset if eval_dataset is None else eval_dataset,
            self.eval_collator or self.data_collator,
            batch_size=self.args.eval_batch_size,
        )
        return self.accelerator.prepare(loader)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return this process's batches of rows to score."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> EvalLoopOutput:
        """Add the metrics of the split that the prefix of the metrics names."""
        self.check_last_update()
        prefix = options["metric_key_prefix"]
        rows = self.splits[prefix]
        text = f"evaluating {len(rows.dataset):,} rows"
        phase = self.progress.phase("evaluation", text, total=len(arguments[0]))
        with phase, self.engine_running(), trimming_memory():
            output = super().evaluation_loop(*arguments, **options)
            metrics = rows.metrics(rows.in_row_order(output.predictions, output.label_ids))
        return with_metrics(output, prefix, metrics)

    def score(self, split: str) -> Scored:
        """Score the rows of a split, "eval" or "test", in fp32; every rank must do so.

        It is logged, unless the log has an evaluation of the split at the last step.
        """
        with self.without_autocast():
            output = self.predict(self.rows_to_score(split), metric_key_prefix=split)
        metrics = score_of(output.metrics or {}, split)
        logged = {row["step"] for row in self.state.log_history if f"{split}_primary" in row}
        if self.state.global_step not in logged:
            self.log(output.metrics or {})
        prediction = self.splits[split].in_row_order(output.predictions, output.label_ids)
        return Scored(metrics, prediction)

    def tune(self, validation: Scored) -> tuple[dict[str, Any], Scored]:
        """Decide by the validation rows what the task leaves to them, see `Task.tune`.

        Every later score is with that. Return it, and the validation score with it.
        """
        rows = self.splits["eval"]
        options = rows.task.tune(validation.prediction, rows.labels)
        if not options:
            return {}, validation
        self.splits = {name: each.tuned(options) for name, each in self.splits.items()}
        metrics = self.splits["eval"].metrics(validation.prediction)
        return options, Scored(metrics, validation.prediction)

    def row_results(self, split: str, scored: Scored) -> list[RowResult]:
        """Return the results of the rows of a split that was scored last."""
        return self.splits[split].row_results(scored.prediction)

    def rows_to_score(self, split: str) -> Any:
        """Return the encoded rows of a split in the form that batches are made from."""
        return self.splits[split].dataset

    def get_batch_samples(self, *arguments: Any) -> Any:
        """Return the batches of a step; after the last step there are no batches."""
        if self.control.should_training_stop:
            return [], None
        batches, num_items = super().get_batch_samples(*arguments)
        self.begin_step([batch.pop(ROW) for batch in batches if ROW in batch])
        self.throughput.tokens += [batch.pop(TOKENS) for batch in batches]
        if self.stream:
            for batch in batches:
                self.stream.trained_on(batch.pop(BLOCKS))
        return batches, num_items

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log values, with the seconds of the training; those of steps with speed and memory."""
        self.check_last_update()
        if "grad_norm" in logs:
            logs |= self.throughput.of_steps(self.accelerator.reduce)
        super().log(logs | self.throughput.seconds(), start_time)

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        scheduler = super().create_scheduler(*arguments, **options)
        self.recipe_on_resume.remember(self.optimizer, scheduler)
        return scheduler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate counts all parameters again at each step and nothing reads it."""
        return 0

    @contextmanager
    def writing_checkpoint(self) -> Iterator[None]:
        """Mark a checkpoint complete once it is; delete the oldest only then."""
        self.check_last_update()
        folder, checkpoint = self.checkpoints_folder, self.last_checkpoint
        num_bytes = 3 * 4 * num_trained(self.model)
        message = "The checkpoint before it is whole; run the same command again to resume from it."
        full_disk = explain_disk_errors(checkpoint, num_bytes=num_bytes, advice=message)
        with self.progress.phase("saving"), full_disk:
            if self.args.should_save:
                (checkpoint / MARKER).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            yield
            if self.stream:
                self.stream.save(checkpoint)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(checkpoint, self.identity, best_step=self.state.best_global_step)
                rotate(folder)
        self.accelerator.wait_for_everyone()

    @property
    def checkpoints_folder(self) -> Path:
        """Return the folder of the checkpoints."""
        return Path(self.args.output_dir or ".")

    @property
    def last_checkpoint(self) -> Path:
        """Return the path of the checkpoint of the last step, which may not exist."""
        return self.checkpoints_folder / f"checkpoint-{self.state.global_step}"

    @contextmanager
    def whole_model(self) -> Iterator[Any]:
        """Yield the model as one process uses it; every rank must enter, and any may compute.

        Where parameters are sharded, each rank holds all of them inside.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        engine: Any = self.model_wrapped
        with zero.unsharded(engine) if is_zero(engine) else unsharded(model), not_compiled():
            yield model

    def whole_state(self) -> dict[str, torch.Tensor] | None:
        """Return the whole state of a sharded model, on rank 0; None where each rank has the model.

        Every rank must call it. Of a model with an adapter it has what is trained.
        """
        only_trained = isinstance(self.model, PeftModel)
        if is_zero(self.model_wrapped):
            keep = self.accelerator.is_main_process
            return zero.gathered_state(self.model_wrapped, only_trained=only_trained, keep=keep)
        if not engine_of(self.model_wrapped).shards_parameters:
            return None
        return gathered_state(self.model_wrapped, only_trained=only_trained)

    @contextmanager
    def without_autocast(self) -> Iterator[None]:
        """Compute in the type of the weights inside, as whoever loads the result does.

        A score in bfloat16 would not be found again. Accelerate wraps the model's forward pass in
        autocast when it prepares the model, for good.
        """
        model: Any = self.model
        attributes = vars(model)
        prepared, autocast = attributes.get("forward"), self.accelerator.native_amp
        self.accelerator.native_amp = False  # for a model that is prepared inside
        set_or_delete(attributes, "forward", self.own_forward)
        try:
            with in_own_type(model):
                yield
        finally:
            self.accelerator.native_amp = autocast
            set_or_delete(attributes, "forward", prepared)

    def keep_last_step(self) -> None:
        """Write a checkpoint of the last step, unless there is one."""
        if not self.has_checkpoint():
            self.save_checkpoint()

    def has_checkpoint(self) -> bool:
        """Tell whether there is a complete checkpoint of the last step."""
        return (self.last_checkpoint / MARKER).is_file()

    def load_best(self) -> None:
        """Load the weights of the best evaluation, and keep a checkpoint of the last step.

        An interrupted run resumes from the latter. Raise CheckpointError if the best is damaged.
        """
        step = self.state.best_global_step
        if step is None or step == self.state.global_step:
            return
        self.keep_last_step()
        checkpoint = self.checkpoints_folder / f"checkpoint-{step}"
        if damage := find_damage(checkpoint):
            raise CheckpointError(
                f"{checkpoint} has the weights of the best evaluation, but {damage}. Bring it "
                "back, or give --train.keep last and another --output-dir."
            )
        self.load_weights(checkpoint)


@dataclass(frozen=True)
class Scored:
    """The metrics of a split, and what they were computed from, in the order of its rows."""

    metrics: dict[str, Any]
    prediction: EvalPrediction


def set_or_delete(attributes: dict[str, Any], name: str, value: Any) -> None:
    """Give an object's own attributes a value, or none of the name for None."""
    if value is None:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def with_metrics(output: EvalLoopOutput, prefix: str, metrics: dict[str, Any]) -> EvalLoopOutput:
    """Return the output of an evaluation with further metrics."""
    named = {f"{prefix}_{name}": value for name, value in metrics.items()}
    return EvalLoopOutput(
        predictions=output.predictions,
        label_ids=output.label_ids,
        metrics=(output.metrics or {}) | named,
        num_samples=output.num_samples,
    )


def score_of(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the Trainer's metrics without its prefix and its clocks."""
    dropped = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    stripped = {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items()}
    return {key: value for key, value in stripped.items() if key not in (*dropped, "epoch")}
