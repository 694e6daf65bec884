"""Deal the shards of a stream to lanes, each read by one process, and continue where one was.

The shards of a source follow each other without an end: each pass is another permutation of them,
drawn by the seed. Lane `l` of `n` reads every `n`-th shard of that sequence, from the `l`-th on. A
lane's rows thus depend on the seed and the number of lanes alone. Rows are read in chunks; a cursor
names a chunk's begin, and how much of the chunk is used up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.data.row_reader import RowReader
from pipelines.data.rows import Line, Numbered, Place, Rejected
from pipelines.data.shards import Part
from pipelines.data.validate import HINT, drop_unusable, raise_rejected, to_examples
from pipelines.errors import DataError

SHARDS, ROWS = 0, 1  # what a random generator is for: the first numbers of its seeds
SHARDS_TO_SHARE = 16
"""Shards for each lane from which on the lanes' numbers of them may differ by one."""


@dataclass(frozen=True)
class Position:
    """Where a lane is in a source."""

    turn: int = 0
    """Shards that the lane has read."""
    row: int = 0
    """Rows of the present shard that were read."""
    place: Place | None = None
    """Where the reading of the shard begins again."""


@dataclass(frozen=True)
class Cursor:
    """Where a lane is: at the begin of a chunk, of which a part is used up."""

    positions: tuple[Position, ...]
    """Of each source, at the begin of the chunk."""
    chunk: int
    """Chunks before this one."""
    used: int
    """Rows of the chunk that are used up, or blocks that were made of it."""
    tokens: int
    """Tokens of the next row that are used up."""
    num_rows: tuple[int, ...]
    """Rows of each source that were drawn."""
    num_tokens: tuple[int, ...]
    """Tokens of these rows."""

    @classmethod
    def start(cls, num_sources: int) -> Cursor:
        """Return the cursor of a lane that has not begun."""
        nothing = (0,) * num_sources
        return cls((Position(),) * num_sources, 0, 0, 0, nothing, nothing)

    def to_json(self) -> dict[str, Any]:
        """Return the cursor as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cursor:
        """Return the cursor of a JSON object."""
        positions = tuple(
            Position(each["turn"], each["row"], Place(**each["place"]) if each["place"] else None)
            for each in value["positions"]
        )
        counts = {name: tuple(value[name]) for name in ("num_rows", "num_tokens")}
        return cls(**{**value, **counts, "positions": positions})


@dataclass(frozen=True)
class Chunk:
    """Rows that are read together, each with the number of its source."""

    rows: list[tuple[int, dict[str, Any]]]
    rejected: tuple[Rejected, ...] = ()
    positions: tuple[Position, ...] = ()
    """Of each source, at the begin of the chunk."""
    number: int = 0


@dataclass(frozen=True)
class Block:
    """A training row of a lane, and where the lane is after it."""

    row: dict[str, Any]
    cursor: Cursor
    rejected: tuple[Rejected, ...] = ()
    """Unusable rows that were read since the block before."""


@dataclass(frozen=True)
class Lanes:
    """The rows of a stream as lanes that are read at the same time."""

    task: RowReader
    parts: tuple[Part, ...]
    """The rows of each source."""
    weights: tuple[float, ...]
    """How often a row of each source is drawn, in proportion to the others."""
    num_lanes: int
    seed: int
    chunk_size: int
    shuffle: bool = False
    """Permute the rows of each chunk."""

    def chunks(self, lane: int, cursor: Cursor) -> Iterator[Chunk]:
        """Yield the chunks of a lane, without an end, from that of a cursor on.

        Raise DataError for unusable rows, unless the source skips them; then for a whole pass
        without a usable row.
        """
        readers = [
            _LaneReader(part, self, index, lane, position)
            for index, (part, position) in enumerate(zip(self.parts, cursor.positions, strict=True))
        ]
        number, useful = cursor.chunk, [each.turn for each in readers]
        while True:
            positions = tuple(each.position for each in readers)
            chunk = self._read(readers, positions, lane, number)
            if chunk.rows:
                useful = [each.turn for each in readers]
            for reader, turn in zip(readers, useful, strict=True):
                if reader.turn - turn > reader.turns_of_pass:
                    raise DataError(f"{reader.name}: no row of a whole pass can be used.")
            yield chunk
            number += 1

    def _read(
        self,
        readers: Sequence[_LaneReader],
        positions: tuple[Position, ...],
        lane: int,
        number: int,
    ) -> Chunk:
        """Read the next chunk, in the order in which its rows are drawn."""
        order, drawn = self._draw(len(readers), lane, number)
        records: dict[bool, list[Numbered]] = {True: [], False: []}
        for slot, source in zip(order, drawn, strict=True):
            name, line, record = next(readers[source])
            records[readers[source].local].append((Line(slot, name, line), record))
        usable: dict[int, dict[str, Any]] = {}
        rejected: list[Rejected] = []
        for local, some in records.items():
            if some:
                examples = drop_unusable(self.task, to_examples(some, "", local), None)
                rejected += examples.rejected
                usable |= {
                    int(examples.row_number(index)): row for index, row in enumerate(examples.rows)
                }
        if self.task.dataset.on_bad_row == "stop":
            raise_rejected(rejected, HINT)
        sources = dict(zip(order, drawn, strict=True))
        rows = [(sources[slot], usable[slot]) for slot in sorted(usable)]
        return Chunk(rows, tuple(rejected), positions, number)

    def _draw(self, num_sources: int, lane: int, number: int) -> tuple[list[int], list[int]]:
        """Return the places of a chunk's rows in it, and the sources that they are read from."""
        order, drawn = list(range(self.chunk_size)), [0] * self.chunk_size
        random = np.random.default_rng([ROWS, self.seed, lane, number])
        if num_sources > 1:
            total = sum(self.weights)
            probabilities = [each / total for each in self.weights]
            drawn = random.choice(num_sources, self.chunk_size, p=probabilities).tolist()
        if self.shuffle:
            order = random.permutation(self.chunk_size).tolist()
        return order, drawn


class _LaneReader(Iterator[tuple[str, int, Any]]):
    """The rows of a source in a lane, without an end: shard, line or row number, and row."""

    def __init__(self, part: Part, lanes: Lanes, source: int, lane: int, position: Position):
        self.part, self.seed, self.source = part, lanes.seed, source
        self.lane, self.num_lanes = lane, lanes.num_lanes
        self.num_sharing = num_sharing(len(part.shards), lanes.num_lanes)
        self.num_turns = len(part.shards) * self.num_sharing  # of all lanes, in a pass
        self.turn, self.row, self.place = position.turn, position.row, position.place
        self.rows = self._rows()

    @property
    def name(self) -> str:
        """Return the name of the first shard, for messages."""
        return self.part.shards[0].name

    @property
    def local(self) -> bool:
        """Tell whether the source is local."""
        return self.part.shards[0].local

    @property
    def position(self) -> Position:
        """Return where the next row is read."""
        return Position(self.turn, self.row, self.place)

    @property
    def turns_of_pass(self) -> int:
        """Return the most shards that a lane reads in a pass."""
        return math.ceil(self.num_turns / self.num_lanes)

    def __next__(self) -> tuple[str, int, Any]:
        return next(self.rows)

    def _rows(self) -> Iterator[tuple[str, int, Any]]:
        num_empty = 0
        while True:
            index, remainder = self._shard()
            name, start, empty = self.part.shards[index].name, self.row, True
            for item in self.part.read(index, self.place):
                if isinstance(item, Place):
                    self.place = item
                    continue
                row, (number, record) = item
                if row < start or row % self.num_sharing != remainder:
                    continue
                self.row, empty = row + 1, False
                yield name, number, record
            num_empty = num_empty + 1 if empty and start == 0 else 0
            if num_empty > self.num_turns:
                raise DataError(f"{self.name}: no rows.")
            self.turn, self.row, self.place = self.turn + 1, 0, None

    def _shard(self) -> tuple[int, int]:
        """Return the shard of the present turn, and which of its rows are read, by remainder."""
        number = self.turn * self.num_lanes + self.lane
        seed = [SHARDS, self.seed, self.source, number // self.num_turns]
        order = np.random.default_rng(seed).permutation(self.num_turns)
        remainder, index = divmod(int(order[number % self.num_turns]), len(self.part.shards))
        return index, remainder


def num_sharing(num_shards: int, num_lanes: int) -> int:
    """Return how many lanes read each shard in a pass, each lane its own rows of it.

    More than one do so where there are too few shards to give each lane as many.
    """
    if num_shards >= SHARDS_TO_SHARE * num_lanes:
        return 1
    return num_lanes // math.gcd(num_shards, num_lanes)
