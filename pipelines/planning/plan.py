"""Plan a run: check all that it would check, measure a small copy, predict what it will need."""

from __future__ import annotations

import io
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pipelines.data.splits import Splits
from pipelines.finished import result_in
from pipelines.inputs import Encoded, encode, pin_and_check, read_rows
from pipelines.models.probes import num_positions
from pipelines.planning.batches import (
    Batches,
    batches_of,
    largest_evaluation,
    scored_lengths,
)
from pipelines.planning.data import Shared, SplitSummary, find_shared, summarize_splits
from pipelines.planning.gpus import Fit, estimate_gpus
from pipelines.planning.machine import Seconds, predict_seconds
from pipelines.planning.memory import predict_peaks
from pipelines.planning.parameters import Parameters, count_parameters, empty_model
from pipelines.planning.rehearsal import Rehearsal, rehearse
from pipelines.preparing.splits import check_prepared
from pipelines.preparing.store import Store
from pipelines.process import prepare_process, returning_freed_memory
from pipelines.recipe.recipe import Recipe
from pipelines.training.checkpoints import check_space, free_space, space_of_checkpoints
from pipelines.training.world_size import check_world_size


@dataclass(frozen=True)
class Disk:
    """Bytes on disk."""

    checkpoints: int
    """Of all checkpoints at once, at most."""
    result: int
    """Of the result, which is what is published."""
    free: int


@dataclass(frozen=True)
class Schedule:
    """The steps of the training."""

    steps: int
    rows_per_step: int
    tokens_per_step: int
    tokens: int
    """Of the run; padding included."""
    rows_per_pass: int
    accumulation: int


@dataclass(frozen=True)
class Plan:
    """What a run will need and take; bytes and seconds."""

    name: str
    device: str
    processes: int
    finished: bool
    """The folder holds the finished result of this run, which would not be trained again."""
    splits: dict[str, SplitSummary]
    shared_inputs: list[Shared]
    cautions: list[str]
    notes: list[str]
    """What the checks print."""
    parameters: Parameters
    longest: int
    """Tokens of the longest training row, as the model reads it."""
    schedule: Schedule
    peak_memory: dict[str, int]
    """Predicted peak of the process on this machine, by phase."""
    available_memory: int
    seconds: Seconds
    gpus: list[Fit]
    disk: Disk
    rehearsal: Rehearsal
    planned_in: float
    """Seconds that the plan took, without the imports."""

    @property
    def peak(self) -> int:
        """Return the predicted peak of memory."""
        return max(self.peak_memory.values())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-like values."""
        content = asdict(self)
        content["parameters"]["total"] = self.parameters.total
        content["peak_memory"]["peak"] = self.peak
        return content


def make_plan(recipe: Recipe, num_processes: int | None = None) -> Plan:
    """Return the plan of a run, in a number of processes: of each, memory and time.

    Raise what the run would raise; write nothing to its folder.
    """
    started = time.perf_counter()
    world_size = check_world_size()
    processes = num_processes or world_size
    with prepare_process():
        with returning_freed_memory(), redirect_stdout(io.StringIO()) as printed:
            recipe = pin_and_check(recipe)
            store = Store()
            recipe, raw = read_rows(recipe, store)
            finished = recipe.folder.is_dir() and result_in(recipe, clean=False) is not None
            splits, labels = check_prepared(recipe.task, raw, None, store)
            encoded = encode(recipe, splits, labels, store)
            batches = batches_of(recipe, encoded.train, processes)
            empty = empty_model(recipe, encoded.tokenizer, labels)
            parameters = count_parameters(empty)
            check_space(recipe, parameters.num_trainable)
        with tempfile.TemporaryDirectory(prefix="gpt2-recipes-plan-") as folder:
            rehearsal = rehearse(recipe, encoded, splits, labels, batches, Path(folder))
        schedule = schedule_of(recipe, batches)
        return Plan(
            name=recipe.name,
            device=PartialState().device.type,
            processes=processes,
            finished=finished,
            splits=summarize_splits(recipe.task, splits, encoded, num_positions(empty.config)),
            shared_inputs=find_shared(recipe.task, splits),
            cautions=encoded.warnings,
            notes=[line.strip() for line in printed.getvalue().splitlines()],
            parameters=parameters,
            longest=batches.longest,
            schedule=schedule,
            peak_memory=predict_peaks(
                rehearsal,
                num_layers=parameters.num_layers,
                max_tokens=batches.max_tokens,
                eval_tokens=largest_evaluation(recipe, encoded),
            ),
            available_memory=available_memory(),
            seconds=seconds_of(recipe, splits, encoded, batches, parameters, rehearsal),
            gpus=[*estimate_gpus(recipe, labels, parameters, batches)],
            disk=disk_of(recipe, parameters, rehearsal),
            rehearsal=rehearsal,
            planned_in=time.perf_counter() - started,
        )


def schedule_of(recipe: Recipe, batches: Batches) -> Schedule:
    """Return the steps of the training."""
    size = recipe.train.global_batch_size
    tokens = batches.mean_tokens * size / batches.rows
    return Schedule(
        steps=batches.steps,
        rows_per_step=size,
        tokens_per_step=round(tokens),
        tokens=round(tokens * batches.steps),
        rows_per_pass=batches.rows,
        accumulation=batches.accumulation,
    )


def seconds_of(
    recipe: Recipe,
    splits: Splits,
    encoded: Encoded,
    batches: Batches,
    parameters: Parameters,
    rehearsal: Rehearsal,
) -> Seconds:
    """Return the predicted time on this machine."""
    between = batches.steps // recipe.train.eval_steps if recipe.train.eval_steps else 0
    reported = splits.record["reported"]
    before = recipe.task.baseline(encoded.train, encoded.scored[reported]) is None
    return predict_seconds(
        rehearsal,
        batches,
        num_layers=parameters.num_layers,
        num_trained=parameters.num_trainable,
        scored_tokens=max(sum(each) for each in scored_lengths(recipe, encoded)),
        num_evaluations=between + before + len(encoded.scored),
    )


def disk_of(recipe: Recipe, parameters: Parameters, rehearsal: Rehearsal) -> Disk:
    """Return what the run writes; an adapter's result is what it trains."""
    saved = parameters.total if recipe.lora is None else parameters.num_trainable
    return Disk(
        checkpoints=space_of_checkpoints(recipe, parameters.num_trainable),
        result=4 * saved + rehearsal.other_bytes,
        free=free_space(recipe.folder),
    )


def available_memory() -> int:
    """Return the memory that this machine can give, the GPU's where the run computes on one."""
    import psutil
    import torch

    if PartialState().device.type == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)
