"""The batches of a stream: each process reads its own lanes, and a checkpoint says how far.

Block `g` of all processes is the next one of lane `g % num_lanes`, and process `r` of `w` takes the
blocks with `g % w == r`. Where `w` divides the number of lanes, these are lanes of its own, and a
step has the same blocks on every such number of processes. The same holds for the workers of a
process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from pipelines.console import say
from pipelines.data.lanes import Block, Cursor, num_sharing
from pipelines.data.rejected_file import append_rejected, read_lines
from pipelines.data.rows import Rejected
from pipelines.data.source import DatasetSource
from pipelines.data.stream import BlockStream
from pipelines.errors import DataError, Problem, RecipeError
from pipelines.results.files import write_whole
from pipelines.training.loaders import Collate, sent
from pipelines.workers import worker_context

FILE = "stream.json"  # of a checkpoint
BLOCKS = "blocks"  # the key of a batch's blocks
STEPS_AHEAD = 2  # that workers read


def check_lanes(source: DatasetSource, world_size: int, num_workers: int) -> None:
    """Raise RecipeError for a number of lanes that the processes and workers cannot share."""
    num_readers = world_size * max(1, num_workers)
    if source.num_lanes is None or source.num_lanes % num_readers == 0:
        return
    readers = f"{world_size} processes" + (f" with {num_workers} workers each" * (num_workers > 0))
    text = f"{source.num_lanes} lanes cannot be shared by {readers}; "
    text += f"{math.ceil(source.num_lanes / num_readers) * num_readers} would work."
    raise RecipeError([Problem("task.dataset.num_lanes", text)])


class StreamBatches:
    """The batches of this process, without an end, and how far the training is in them."""

    def __init__(self, stream: BlockStream, arguments: TrainingArguments, collate: Collate):
        self.stream, self.arguments, self.collate = stream, arguments, collate
        self.rank, self.world_size = arguments.process_index, arguments.world_size
        num_readers = self.world_size * max(1, arguments.dataloader_num_workers)
        num_lanes = stream.documents.source.num_lanes or num_readers
        self.lanes = stream.lanes(num_lanes, arguments.seed)
        self.cursors: dict[int, Cursor] = {}
        self.num_blocks = 0  # of all processes
        self.rejected: list[Rejected] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size, num_workers = self.arguments.train_batch_size, self.arguments.dataloader_num_workers
        of_step = size * self.arguments.gradient_accumulation_steps
        loader = DataLoader(
            Dealt(self),
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=num_workers,
            prefetch_factor=math.ceil(STEPS_AHEAD * of_step / num_workers) if num_workers else None,
            multiprocessing_context=worker_context() if num_workers else None,
        )
        blocks: Iterator[tuple[int, Block] | DataError] = iter(loader)
        while True:
            taken = []
            for block in islice(blocks, size):
                if isinstance(block, DataError):
                    raise block
                taken.append(block)
            batch = self.collate([block.row for _, block in taken])
            yield sent(batch, PartialState().device) | {BLOCKS: taken}

    def trained_on(self, blocks: list[tuple[int, Block]]) -> None:
        """Note that the blocks of a batch are used up."""
        for lane, block in blocks:
            self.cursors[lane] = block.cursor
            self.rejected += block.rejected
        self.num_blocks += len(blocks) * self.world_size

    def gather(self) -> None:
        """Tell every process how far all lanes are, and list the rows that they rejected."""
        own = {
            lane: each for lane, each in self.cursors.items() if lane % self.world_size == self.rank
        }
        for cursors, rejected in gather_object([(own, self.rejected)]):
            self.cursors |= cursors
            file = self.stream.documents.rejected
            if file is not None and rejected:
                append_rejected(file, rejected, read_lines(file))
        self.rejected = []

    def save(self, checkpoint: Path) -> None:
        """Write how far the training is; every process must call it."""
        self.gather()
        if self.arguments.should_save:
            lanes = {str(lane): each.to_json() for lane, each in sorted(self.cursors.items())}
            state = {"num_blocks": self.num_blocks, "num_lanes": self.lanes.num_lanes}
            write_whole(checkpoint / FILE, state | {"shards": self.shards(), "lanes": lanes})

    def load(self, checkpoint: Path) -> None:
        """Continue where a checkpoint was written.

        Raise RecipeError where the processes cannot share its lanes, or the shards are others.
        """
        if not (checkpoint / FILE).is_file():
            text = f"{checkpoint} does not say how far the stream was read. Start again with "
            raise RecipeError([Problem("task.dataset.streaming", f"{text}--overwrite.")])
        state = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
        num_lanes, num_workers = state["num_lanes"], self.arguments.dataloader_num_workers
        if num_lanes % (self.world_size * max(1, num_workers)):
            text = f"{checkpoint} was written by a run that read its stream in {num_lanes} lanes, "
            text += f"which {self.world_size} processes with {num_workers} workers each cannot "
            text += "share. Resume on a number of them that divides it. "
            text += "--task.dataset.num-lanes sets it for a run from its start."
            raise RecipeError([Problem("world_size", text)])
        source = self.stream.documents.source
        self.lanes = replace(self.lanes, num_lanes=num_lanes)
        if state["shards"] != self.shards():
            text = f"{source.path} has other shards than {checkpoint} was trained on. Bring them "
            raise RecipeError([Problem("task.dataset.path", f"{text}back, or use --overwrite.")])
        self.num_blocks = state["num_blocks"]
        self.cursors = {int(lane): Cursor.from_json(each) for lane, each in state["lanes"].items()}

    def shards(self) -> list[list[int | None]]:
        """Return the number of shards of each source, and where its rows begin and end."""
        return [[len(part.shards), part.begin, part.end] for part in self.lanes.parts]

    def describe(self) -> Iterator[str]:
        """Yield lines that say how the shards are read, and what depends on it."""
        num_lanes, source = self.lanes.num_lanes, self.stream.documents.source
        names = [source.path, *(each.path for each in source.mixed_with or ())]
        for name, part in zip(names, self.lanes.parts, strict=True):
            num_shards = len(part.shards)
            yield f"  stream: {name} (shards: {num_shards:,}, lanes: {num_lanes})"
            if (readers := num_sharing(num_shards, num_lanes)) > 1:
                yield (
                    f"  {num_shards:,} shards cannot be shared evenly by {num_lanes} lanes: "
                    f"{readers} lanes read each of them, and use one row in {readers}. With a "
                    f"multiple of {num_lanes} shards, each lane would read its own."
                )
        if num_lanes > 1 and source.num_lanes is None:
            yield (
                f"  the batches depend on the number of processes and workers, {num_lanes}; "
                f"--task.dataset.num-lanes {num_lanes} makes them the same on each that divides it"
            )

    def drawn(self) -> list[dict[str, Any]]:
        """Return the rows and tokens that were drawn from each source."""
        source = self.stream.documents.source
        names = [source.path, *(each.path for each in source.mixed_with or ())]
        cursors = self.cursors.values()
        num_rows = [sum(each.num_rows[index] for each in cursors) for index in range(len(names))]
        num_tokens = [sum(c.num_tokens[index] for c in cursors) for index in range(len(names))]
        columns = zip(names, self.lanes.weights, num_rows, num_tokens, strict=True)
        return [
            {"path": name, "weight": weight, "rows": rows, "tokens": tokens}
            for name, weight, rows, tokens in columns
        ]


class Dealt(IterableDataset[Any]):
    """The blocks of a process, or of one worker of it, with their lanes.

    A DataError is yielded: torch would raise it with the trace of the worker as its message.
    """

    def __init__(self, batches: StreamBatches):
        self.stream, self.lanes = batches.stream, batches.lanes
        self.rank, self.world_size = batches.rank, batches.world_size
        self.cursors: Mapping[int, Cursor] = dict(batches.cursors)
        self.first = batches.num_blocks // batches.world_size

    def __iter__(self) -> Iterator[tuple[int, Block] | DataError]:
        worker = get_worker_info()
        begin, step = (worker.id, worker.num_workers) if worker else (0, 1)
        lanes: dict[int, Iterator[Block]] = {}
        try:
            for number in count(self.first + begin, step):
                lane = (number * self.world_size + self.rank) % self.lanes.num_lanes
                if lane not in lanes:
                    cursor = self.cursors.get(lane) or Cursor.start(len(self.lanes.parts))
                    lanes[lane] = self.stream.blocks(self.lanes, lane, cursor)
                yield lane, next(lanes[lane])
        except DataError as error:
            yield error


def as_it_is(item: Any) -> Any:
    """Return an item of a loader; torch's default would make tensors of its parts."""
    return item


class StreamEpochs(TrainerCallback):
    """Counts the steps of the whole run as one epoch, also after a resume in the middle.

    The Trainer counts those since the resume where it does not skip batches itself.
    """

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        state.epoch = state.global_step / state.max_steps


def print_drawn(drawn: list[dict[str, Any]]) -> None:
    """Print the fractions of rows and tokens that were drawn from mixed sources."""
    if len(drawn) < 2:
        return
    num_rows, num_tokens = (sum(each[name] for each in drawn) for name in ("rows", "tokens"))
    for each in drawn:
        rows, tokens = (f"{each['rows'] / num_rows:.1%}", f"{each['tokens'] / num_tokens:.1%}")
        say(f"  drawn from {each['path']}: {rows} of the rows, {tokens} of the tokens")
