"""A rehearsal: one real step on a copy of the model with few layers, saved, loaded and scored."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from pipelines.data.splits import Splits
from pipelines.final_score import final_score
from pipelines.hub.load import load_result
from pipelines.hub.publish import check_reload
from pipelines.inputs import Encoded
from pipelines.models.build import build_model
from pipelines.planning.batches import (
    Batches,
    batch_tokens,
    largest_evaluation,
    longest_examples,
)
from pipelines.planning.blocks import Watch, blocks_of, module_bytes, now, trained_parameters
from pipelines.planning.parameters import config_of
from pipelines.planning.peak import memory_at_rest, peak_memory, reset_peak
from pipelines.process import returning_freed_memory
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch
from pipelines.results.save import FinishedRun, save
from pipelines.tasks.base import Features
from pipelines.training.build import build_trainer
from pipelines.training.checkpoints import num_trained
from pipelines.training.identity import identity_of
from pipelines.training.loaders import data_loader
from pipelines.training.score import score_features
from pipelines.training.trainer import RecipeTrainer

NUM_LAYERS = 2
MAX_TOKENS = 2048
"""Tokens of a forward pass of the rehearsal; a run's may have more."""
MAX_EVAL_TOKENS = 8192
"""Tokens of a batch of its evaluation, which has no backward pass."""
MAX_GAPS = 2
"""Times by which a block's activations grow the process, at most, by the gaps between tensors.

More growth is a weight that was converted for one product, whose room the next block uses again.
"""
NUM_STEPS = 2
"""The first step makes kernels, the optimizer's state and a checkpoint; the second is timed."""


@dataclass(frozen=True)
class Block:
    """The bytes that one more block adds."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Saved for the backward pass of the rehearsal's batch, with the gaps between them."""
    recomputed: int = 0
    """Saved, in place of its input alone, in the one block that is computed again at a time."""


@dataclass(frozen=True)
class Rehearsal:
    """What was measured; bytes and seconds."""

    num_layers: int
    tokens: int
    """Tokens of a forward pass of the training."""
    eval_tokens: int
    """Tokens of the largest evaluation batch, padding included."""
    scored_tokens: int
    """Tokens of the rows that the loaded result scored."""
    accumulation: int
    trained: int
    """Trainable parameters."""
    peaks: dict[str, int]
    """The most memory of the process in each phase."""
    eval_per_token: float
    """Bytes that a further token of an evaluation batch adds; 0 if the run's has no more."""
    block: Block
    activations_outside: int
    """Saved outside of the blocks for the backward pass."""
    step_seconds: float
    update_seconds: float
    """Of the optimizer, a part of the step."""
    block_seconds: float
    """Of the forward and backward pass of a block."""
    eval_seconds: float
    loss: float
    metrics: dict[str, Any]
    """The score of the loaded result."""
    other_bytes: int
    """Of the result's files without the weights."""


@dataclass
class StepClock(TrainerCallback):
    """Times the last step, and its update."""

    step: float = 0.0
    update: float = 0.0
    began: float = field(default=0.0, repr=False)
    optimizer: Any = None

    def on_step_begin(self, *_: Any, **options: Any) -> None:
        self.began = now()

    def on_pre_optimizer_step(self, *_: Any, **options: Any) -> None:
        self.update = now()

    def on_optimizer_step(self, *_: Any, **options: Any) -> None:
        self.update = now() - self.update
        self.optimizer = options["optimizer"]

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **options: Any,
    ) -> None:
        self.step = now() - self.began


def rehearse(
    recipe: Recipe,
    encoded: Encoded,
    splits: Splits,
    labels: tuple[str, ...],
    batches: Batches,
    folder: Path,
) -> Rehearsal:
    """Train, save, load and score a copy of the model in a folder, and measure it.

    Raise whatever the run would raise. Nothing is printed.
    """
    with redirect_stdout(io.StringIO()):
        with returning_freed_memory():
            small = small_recipe(recipe, encoded.tokenizer, labels, batches, folder)
            rows = small_rows(small, encoded, splits, labels, batches)
        eval_tokens = largest_evaluation(recipe, encoded)
        return rehearse_small(small, encoded, splits, labels, rows, eval_tokens)


@dataclass(frozen=True)
class Rows:
    """The rows of a rehearsal."""

    train: Features
    """Of the run's largest training batch."""
    scored: Features
    """The longest evaluation rows."""
    reloaded: Features
    """Some of those, to score the result that was saved and loaded."""


def rehearse_small(
    recipe: Recipe,
    encoded: Encoded,
    splits: Splits,
    labels: tuple[str, ...],
    rows: Rows,
    eval_tokens: int,
) -> Rehearsal:
    """Rehearse the recipe of a copy; the run's evaluation batches have up to `eval_tokens`."""
    peaks: dict[str, int] = {}
    tokenizer = encoded.tokenizer
    set_seed(recipe.train.seed)
    with returning_freed_memory(), measuring(peaks, "loading"):
        model = build_model(recipe, tokenizer, labels)
        encoded.check_vocabulary(model)
    clock, watch = StepClock(), Watch(model)
    trainer = build_trainer(
        recipe,
        model,
        tokenizer,
        train=rows.train,
        scored={"eval": rows.scored},
        labels=labels,
        identity=identity_of(recipe, splits, 1) | {"run": recipe.name, "changed": []},
        callbacks=[clock],
    )
    with measuring(peaks, "training"), watch.watching():
        trainer.train()
    block = block_of(trainer, watch, clock.optimizer)
    finished = score_and_save(recipe, trainer, tokenizer, labels, splits, peaks)
    tokens = tokens_of(recipe, rows)
    eval_per_token = bytes_of_token(trainer) if eval_tokens > tokens["eval_tokens"] else 0.0
    eval_seconds, metrics = load_and_score(trainer, finished, rows.reloaded)
    return Rehearsal(
        **tokens,
        num_layers=len(blocks_of(model)),
        trained=num_trained(model),
        peaks=peaks,
        eval_per_token=eval_per_token,
        block=block,
        activations_outside=watch.saved.get(-1, 0),
        step_seconds=clock.step,
        update_seconds=clock.update,
        block_seconds=watch.block_seconds,
        eval_seconds=eval_seconds,
        loss=next(row["loss"] for row in reversed(trainer.state.log_history) if "loss" in row),
        metrics=metrics,
        other_bytes=bytes_without_weights(recipe.folder),
    )


def score_and_save(
    recipe: Recipe,
    trainer: RecipeTrainer,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    splits: Splits,
    peaks: dict[str, int],
) -> FinishedRun:
    """Score the trained copy and save it as a result, and note the peaks of both."""
    with measuring(peaks, "evaluation"):
        final = final_score(trainer, "eval")
    finished = FinishedRun(
        recipe=recipe,
        tokenizer=tokenizer,
        labels=labels,
        metrics=final.metrics,
        rows=final.rows,
        splits=splits,
        kept=None,
        tuned=final.tuned,
        identity=trainer.identity,
    )
    with measuring(peaks, "saving"):
        save(trainer, finished)
    return finished


def load_and_score(
    trainer: RecipeTrainer, finished: FinishedRun, scored: Features
) -> tuple[float, dict[str, Any]]:
    """Load a saved result and score it; return the seconds of the scoring, and the score.

    Raise RuntimeError if the result is not the trained model.
    """
    recipe = finished.recipe
    collate = recipe.task.collate(int(finished.tokenizer.pad_token_id or 0))
    with trainer.whole_model() as trained:
        check_reload(trained, trainer.accelerator, recipe.folder, collate(scored.dataset[:8]))
    loaded = load_result(recipe.folder)
    started = time.perf_counter()
    metrics = score_features(loaded, scored)
    return time.perf_counter() - started, metrics


def tokens_of(recipe: Recipe, rows: Rows) -> dict[str, int]:
    """Return the tokens of the rehearsal's batches, and how many make a step."""
    task, options = recipe.task, recipe.train
    size = options.per_device_train_batch_size
    trained = [task.num_tokens(row) for row in rows.train.dataset[:size]]
    scored = [task.num_tokens(row) for row in rows.scored.dataset]
    return {
        "tokens": batch_tokens(task, trained),
        "accumulation": options.global_batch_size // size,
        "eval_tokens": max(scored) * min(len(scored), options.per_device_eval_batch_size),
        "scored_tokens": sum(task.num_tokens(row) for row in rows.reloaded.dataset),
    }


def block_of(trainer: RecipeTrainer, watch: Watch, optimizer: Any) -> Block:
    """Return the bytes of the last block of a model that was trained."""
    last = len(blocks_of(watch.model)) - 1
    block = blocks_of(watch.model)[last]
    trained = trained_parameters(block)
    saved = watch.saved.get(last, 0) + watch.casts.get(last, 0)
    activations = max(saved, min(watch.growth or 0, MAX_GAPS * saved))
    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wraps it
    state = [
        each.nbytes
        for parameter in trained
        for each in inner.state.get(parameter, {}).values()
        if isinstance(each, torch.Tensor)
    ]
    return Block(
        weights=module_bytes(block),
        gradients=sum(each.nbytes for each in trained),
        optimizer=sum(state),
        activations=watch.input_bytes if watch.checkpointed else activations,
        recomputed=activations if watch.checkpointed else 0,
    )


def bytes_of_token(trainer: RecipeTrainer) -> float:
    """Return the bytes by which each token of a whole evaluation batch grows the process.

    What does not depend on the number of tokens, as a chunk of logits, is in half a batch, too.
    """
    rows = min(trainer.args.eval_batch_size, len(trainer.splits["eval"].dataset))
    (tokens, growth), (half, half_growth) = (
        growth_of_batch(trainer, each) if each else (0, 0) for each in (rows, rows // 2)
    )
    return max(0, growth - half_growth) / (tokens - half)


def growth_of_batch(trainer: RecipeTrainer, rows: int) -> tuple[int, int]:
    """Return the tokens of an evaluation batch, and by how many bytes it grows the process.

    Nothing that was freed before is used again.
    """
    collate = trainer.eval_collator or trainer.data_collator
    loader = data_loader(trainer.args, trainer.rows_to_score("eval"), collate, batch_size=rows)
    batch, model = next(iter(loader)), trainer.model
    assert model is not None
    resting = memory_at_rest()
    reset_peak()
    trainer.prediction_step(model, batch, False)
    return batch["input_ids"].numel(), peak_memory() - resting


@contextmanager
def measuring(peaks: dict[str, int], phase: str) -> Iterator[None]:
    """Note the most memory of the process while the code inside runs."""
    memory_at_rest()
    reset_peak()
    yield
    peaks[phase] = peak_memory()


def small_recipe(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    batches: Batches,
    folder: Path,
) -> Recipe:
    """Return the recipe of a copy with few layers and few steps, whose base is in the folder."""
    rows = max(1, min(batches.rows, MAX_TOKENS // batches.longest, len(batches.largest)))
    train = replace(
        recipe.train,
        max_steps=NUM_STEPS,
        global_batch_size=rows * min(batches.accumulation, 2),
        per_device_train_batch_size=rows,
        warmup_steps=0,
        logging_steps=1,
        eval_steps=None,
        save_steps=recipe.train.save_steps and NUM_STEPS,
        keep="last",
        metric_for_best=None,
        early_stopping_patience=None,
        early_stopping_threshold=0.0,
        torch_compile=False,
        dataloader_num_workers=0,
    )
    return replace(
        recipe,
        name="plan",
        model=small_model(recipe, tokenizer, labels, folder / "base"),
        train=train,
        output_dir=str(folder / "run"),
        push_to=None,
        public=False,
        allow_changed=(),
        overwrite=False,
    )


def small_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...], folder: Path
) -> Model | Scratch:
    """Return a copy's model: random weights of the width and vocabulary of the recipe's."""
    if isinstance(recipe.model, Scratch):
        return replace(recipe.model, n_layer=min(NUM_LAYERS, recipe.model.widths[0]))
    config = shallow(config_of(recipe, labels))
    auto: Any = getattr(transformers, recipe.task.auto_class)
    auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Model(name_or_path=str(folder))


def shallow(config: Any) -> Any:
    """Return a config with few layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = min(NUM_LAYERS, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    return config


def small_rows(
    small: Recipe,
    encoded: Encoded,
    splits: Splits,
    labels: tuple[str, ...],
    batches: Batches,
) -> Rows:
    """Return the rows of a rehearsal, encoded."""
    task, options = small.task, small.train
    rows = sorted(batches.largest, key=task.num_tokens)[-options.per_device_train_batch_size :]
    repeated = rows * (options.global_batch_size // len(rows) + 1)
    train = replace(encoded.train, dataset=repeated[: options.global_batch_size])
    scored, reloaded = (
        task.features(
            longest_examples(task, splits.held_out, options.per_device_eval_batch_size, most),
            encoded.tokenizer,
            labels,
            training=False,
        )
        for most in (MAX_EVAL_TOKENS, MAX_TOKENS)
    )
    return Rows(train, scored, reloaded)


def bytes_without_weights(folder: Path) -> int:
    """Return the bytes of a result's files without the weights."""
    files = (each for each in folder.iterdir() if each.is_file())
    return sum(each.stat().st_size for each in files if each.suffix != ".safetensors")
