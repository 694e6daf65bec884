"""Rules between the fields of a recipe, one function a subject. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipelines.data.source import DatasetSource
from pipelines.errors import Problem
from pipelines.recipe.values import NF4, Distillation, Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks import TASKS
from pipelines.tasks.base import Task

PLAIN_NAME = re.compile(r"[\w-][\w.-]*")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
PLAIN_INITS = ("default", "gaussian")
"""Initial values of an adapter that leave the base's weights as they are."""


def wrong_name(name: str) -> Iterator[Problem]:
    """Yield a problem unless a name can be that of a folder."""
    if isinstance(name, str) and not PLAIN_NAME.fullmatch(name):
        text = f"{name!r} names no folder: letters, digits, '.', '-' and '_' do."
        yield Problem("name", text)


def wrong_repo_id(repo: str | None) -> Iterator[Problem]:
    """Yield a problem unless `repo` is the id of a Hub repository of a user, or None."""
    if isinstance(repo, str) and not REPO_ID.fullmatch(repo):
        yield Problem("push_to", f"{repo!r} is not of the form USER/NAME.")


def wrong_license(license_id: str | None) -> Iterator[Problem]:
    """Yield a problem for a licence that the Hub would refuse by its spelling."""
    if isinstance(license_id, str) and not LICENSE_ID.fullmatch(license_id):
        text = f"{license_id!r} is not an id of a licence on the Hub, such as apache-2.0 or mit."
        yield Problem("license", text)


def wrong_task(task: Task) -> Iterator[Problem]:
    """Yield what is wrong between the options of a task."""
    for option, message in task.problems():
        yield Problem(f"task.{option}", message)


def wrong_reference(task: Task, lora: Lora | None) -> Iterator[Problem]:
    """Yield why the base with the adapter off cannot be the reference model of DPO."""
    if not task.needs_reference:
        return
    if lora is None:
        text = "the base with the adapter off is the reference of DPO. Add lora=Lora()."
        yield Problem("lora", text)
    elif lora.init_lora_weights not in PLAIN_INITS:
        yield Problem(
            "lora.init_lora_weights",
            f"{lora.init_lora_weights!r} moves a part of the base into the adapter, so that the "
            "base with the adapter off is no reference for DPO. Allowed: "
            f"{', '.join(PLAIN_INITS)}.",
        )


def wrong_quantization(quantization: Int8 | NF4 | None, lora: Lora | None) -> Iterator[Problem]:
    """Yield why a quantised base cannot be trained, or its adapter not initialised."""
    if quantization is None:
        return
    if lora is None:
        yield Problem(
            "quantization",
            "8-bit and 4-bit weights cannot be trained. Add lora=Lora() to train an adapter on "
            "them, or drop quantization.",
        )
    elif lora.init_lora_weights not in PLAIN_INITS:
        yield Problem(
            "lora.init_lora_weights",
            f"{lora.init_lora_weights!r} starts from the base's weights, which are quantised. "
            f"Allowed: {', '.join(PLAIN_INITS)}.",
        )


def wrong_distillation(distillation: Distillation | None, task: Task) -> Iterator[Problem]:
    """Yield a task that has no loss towards a teacher."""
    if distillation is not None and not task.distils:
        text = "this task cannot learn from a teacher. A classifier, a reader of answers and a "
        text += "language model of whole texts can."
        yield Problem("distillation", text)


def wrong_tokenizer(model: Model | Scratch) -> Iterator[Problem]:
    """Yield a revision without its tokenizer, and a tokenizer of a tokenizer."""
    if isinstance(model, Model):
        if model.tokenizer is None and model.tokenizer_revision is not None:
            text = "is the revision of a tokenizer that is not named. Set model.tokenizer too."
            yield Problem("model.tokenizer_revision", text)
    elif isinstance(model.tokenizer, Model) and model.tokenizer.tokenizer:
        text = "a tokenizer has no other tokenizer. Name that one as name_or_path."
        yield Problem("model.tokenizer.tokenizer", text)


def wrong_optimizer(train: Train, model: Model | Scratch) -> Iterator[Problem]:
    """Yield a problem for Muon on pretrained weights."""
    if train.optim == "muon" and not isinstance(model, Scratch):
        text = "'muon' is for weights from scratch. Did you mean adamw_torch_fused?"
        yield Problem("train.optim", text)


def wrong_scratch(model: Model | Scratch, lora: Lora | None, task: Task) -> Iterator[Problem]:
    """Yield what does not fit a model with random weights."""
    if not isinstance(model, Scratch):
        return
    if lora is not None:
        yield Problem("lora", "an adapter needs pretrained weights. Use model=Model(...).")
    _, heads, width = model.widths
    if width % heads:
        yield Problem("model.n_embd", f"{width} is not a multiple of {heads} heads.")
    if task.length > model.n_positions:
        text = f"{task.length} is above model.n_positions, {model.n_positions}."
        yield Problem(f"task.{task.length_field}", text)


def wrong_splits(dataset: DatasetSource, chooses: bool) -> Iterator[Problem]:
    """Yield a problem for two splits with the same rows, and for a score of no rows.

    `chooses` tells whether test rows are held out by default.
    """
    seen = {dataset.train_split: "train on"}
    for field, use in (("eval_split", "choose by"), ("test_split", "report")):
        split = getattr(dataset, field)
        if split in seen:
            text = f"{split!r} is the split to {seen[split]}, too. "
            yield Problem(f"task.dataset.{field}", f"{text}Name another, or none to hold rows out.")
        elif split is not None:
            seen[split] = use
    held_out = dataset.test_fraction if dataset.test_split is None else None
    if held_out and dataset.streaming:
        text = "no test rows can be held out of a stream. Name a task.dataset.test_split."
        yield Problem("task.dataset.test_fraction", text)
    if held_out and dataset.eval_split is None and held_out + dataset.eval_fraction >= 1:
        text = f"{held_out:g} and an eval_fraction of {dataset.eval_fraction:g} leave no rows "
        yield Problem("task.dataset.test_fraction", f"{text}to train on.")
    unset = dataset.test_fraction is None and chooses and not dataset.streaming
    if dataset.scored_split == "test" and not dataset.has_test and not unset:
        text = "there are no test rows. Set task.dataset.test_split or task.dataset.test_fraction."
        yield Problem("task.dataset.scored_split", text)


def wrong_choice(train: Train, task: Task) -> Iterator[Problem]:
    """Yield why the best evaluation cannot be found."""
    if train.metric_for_best is not None:
        if not train.chooses:
            text = "nothing is chosen by it. Set train.keep to best, or an early stop."
            yield Problem("train.metric_for_best", text)
        elif train.metric_for_best not in task.metrics:
            text = f"{train.metric_for_best!r} is no metric of the task. Known: "
            yield Problem("train.metric_for_best", f"{text}{', '.join(task.metrics)}.")
    if train.early_stopping_threshold and train.early_stopping_patience is None:
        text = "goes with train.early_stopping_patience."
        yield Problem("train.early_stopping_threshold", text)
    if not train.chooses:
        return
    field = "early_stopping_patience" if train.keep == "last" else "keep"
    if train.eval_steps is None:
        text = "needs evaluations during the training. Set train.eval_steps."
        yield Problem(f"train.{field}", text)
    elif train.max_steps is not None and train.eval_steps >= train.max_steps:
        text = f"{train.eval_steps} is not before the last step, {train.max_steps}, so that there "
        yield Problem("train.eval_steps", f"{text}is nothing to choose from. Set a smaller number.")
    if train.keep == "best" and train.save_steps is None:
        text = "the best weights are kept in a checkpoint. Set train.save_steps."
        yield Problem("train.keep", text)


def wrong_stream(task: Task, model: Model | Scratch, train: Train) -> Iterator[Problem]:
    """Yield why rows cannot be read while training, and what is for such rows alone."""
    if not task.dataset.streaming:
        yield from stream_options(task.dataset)
        return
    if not task.streams:
        names = " and ".join(name for name, each in TASKS.items() if each.streams)
        yield Problem("task.dataset.streaming", f"only {names} streams.")
    if train.max_steps is None:
        yield Problem("train.max_steps", "a stream has no end: set the number of steps.")
    if isinstance(model, Scratch) and isinstance(model.tokenizer, Tokenizer):
        yield Problem("model.tokenizer", "cannot be trained on a stream. Name a checkpoint's.")
    yield from wrong_mixture(task.dataset)


def stream_options(dataset: DatasetSource) -> Iterator[Problem]:
    """Yield a problem for each option of streams that is set for rows held in memory."""
    for option in ("shuffle_buffer_size", "num_lanes", "mixed_with", "weight"):
        if getattr(dataset, option) is not None:
            text = "is for a stream. Set task.dataset.streaming, or leave it out."
            yield Problem(f"task.dataset.{option}", text)


def wrong_mixture(dataset: DatasetSource) -> Iterator[Problem]:
    """Yield a problem for a weight without other sources, for sources without, and for a repeat."""
    others = dataset.mixed_with
    if others is None:
        if dataset.weight is not None:
            text = "there is nothing to weigh it against. Set task.dataset.mixed_with, too."
            yield Problem("task.dataset.weight", text)
        return
    if not others:
        text = "names no source. Leave it out, or name one as MixedSource(path=..., weight=...)."
        yield Problem("task.dataset.mixed_with", text)
    if dataset.weight is None:
        text = "is missing: mixed_with needs the weight of this source, too."
        yield Problem("task.dataset.weight", text)
    seen = {(dataset.path, dataset.name, dataset.train_split): "the source itself"}
    for index, each in enumerate(others):
        key = (each.path, each.name, each.train_split)
        if key in seen:
            text = f"{each.path} is {seen[key]}. Raise its weight instead."
            yield Problem(f"task.dataset.mixed_with.{index}.path", text)
        seen[key] = f"task.dataset.mixed_with.{index}, too"
