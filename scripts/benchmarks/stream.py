"""Read a generated stream of several GB: memory, speed, what a resume reads again, and two readers.

    python scripts/benchmarks/stream.py FOLDER TOKENIZER [--gb 2] [--shards 16]

FOLDER gets the stream, of sentences of the documentation, and keeps it. TOKENIZER is a folder with
a tokenizer. Each measurement is a process of its own, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NUM_EVAL_ROWS, BLOCK_SIZE, NUM_BLOCKS = 1000, 1024, 20_000
SAMPLED = 2000  # rows between two looks at the memory


def write(folder: Path, num_bytes: int, num_shards: int) -> None:
    """Write the stream, unless it is there."""
    text = " ".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    sentences = [each for each in re.split(r"(?<=[.:])\s+", text) if len(each) > 40]
    random_ = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard in range(num_shards):
        file = folder / f"train-{shard:05d}-of-{num_shards:05d}.jsonl"
        size = 0
        if file.exists():
            continue
        with file.open("w") as out:
            while size < num_bytes // num_shards:
                some = " ".join(random_.choices(sentences, k=random_.randint(2, 40)))
                number += 1
                size += out.write(json.dumps({"text": f"{shard}-{number} {some}"}) + "\n")


def stream_of(folder: Path, tokenizer: str, num_lanes: int) -> tuple[Any, Any]:
    """Return the packed stream and its lanes."""
    from transformers import AutoTokenizer

    from pipelines.data.load import load_splits
    from pipelines.data.source import DatasetSource
    from pipelines.data.splits import check_splits
    from pipelines.tasks.causal_lm import CausalLM

    source = DatasetSource(path=str(folder), streaming=True, max_eval_rows=NUM_EVAL_ROWS)
    task = CausalLM(dataset=source, block_size=BLOCK_SIZE)
    splits, labels = check_splits(task, load_splits(source))
    backend = AutoTokenizer.from_pretrained(tokenizer)
    stream = task.features(splits.train, backend, labels, training=True).dataset
    return stream, stream.lanes(num_lanes, 42)


def read_rows(folder: Path, tokenizer: str, num_lanes: int, lane: int) -> dict[str, Any]:
    """Read a pass of a lane, without tokenising: rows, memory, and the cursor at 90 %."""
    from pipelines.data.lanes import Cursor

    _, lanes = stream_of(folder, tokenizer, num_lanes)
    lanes = replace(lanes, chunk_size=1)  # so that none reaches into the next pass
    total = sum(each.file.stat().st_size for each in lanes.parts[0].shards) / num_lanes
    started, ids, memory, size, cursor = time.perf_counter(), [], [], 0, None
    for chunk, after in pairwise(lanes.chunks(lane, Cursor.start(1))):
        if after.positions[0].turn * num_lanes >= len(lanes.parts[0].shards):
            break  # the row is one of the next pass
        for _, row in chunk.rows:
            ids.append(hash_of(row["text"]))
            size += len(row["text"].encode()) + len('{"text": ""}\n')
        if cursor is None and size > 0.9 * total:
            cursor = Cursor(chunk.positions, chunk.number, 0, 0, (0,), (0,)).to_json()
        if len(ids) // SAMPLED >= len(memory):
            memory.append(resident())
    seconds = time.perf_counter() - started
    return {"ids": ids, "memory": memory, "cursor": cursor, "seconds": seconds, "bytes": size}


def read_blocks(folder: Path, tokenizer: str, cursor: dict[str, Any] | None) -> dict[str, Any]:
    """Read blocks from a cursor on: bytes until the first, speed, and memory."""
    from pipelines.data.lanes import Cursor

    stream_of(folder, tokenizer, 1)  # so that the modules and the tokenizer are not counted
    before = bytes_read()
    stream, lanes = stream_of(folder, tokenizer, 1)
    place = Cursor.from_json(cursor) if cursor else Cursor.start(1)
    blocks = stream.blocks(lanes, 0, place)
    next(blocks)
    again, started, memory = bytes_read() - before, time.perf_counter(), []
    for number in range(NUM_BLOCKS):
        next(blocks)
        if number % (NUM_BLOCKS // 100) == 0:
            memory.append(resident())
    seconds = time.perf_counter() - started
    return {"again": again, "rate": NUM_BLOCKS * BLOCK_SIZE / seconds, "memory": memory}


def hash_of(text: str) -> str:
    """Return what tells the rows from each other: their numbers."""
    return text.partition(" ")[0]


def resident() -> int:
    """Return the bytes of memory that this process uses."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def bytes_read() -> int:
    """Return the bytes that this process has read, from the disk or from its cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(*arguments: Any) -> dict[str, Any]:
    """Return what a step gives in a process of its own."""
    command = [sys.executable, __file__, "--step", *map(json.dumps, arguments)]
    one_core = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, env=os.environ | one_core, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(result.stdout.splitlines()[-1]))


def growth(memory: list[int]) -> str:
    """Return the memory after a tenth of the readings, and the most after it."""
    return f"{memory[len(memory) // 10] / 1e6:,.0f} MB, at most {max(memory) / 1e6:,.0f} MB"


def main() -> None:
    """Write the stream and measure."""
    if sys.argv[1:2] == ["--step"]:
        step, folder, *rest = map(json.loads, sys.argv[2:])
        steps = {"rows": read_rows, "blocks": read_blocks}
        print(json.dumps(steps[step](Path(folder), *rest)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=16)
    options = parser.parse_args()
    write(options.folder, int(options.gb * 1e9), options.shards)
    total = sum(file.stat().st_size for file in options.folder.glob("train-*"))
    common = str(options.folder), options.tokenizer
    whole = measure("rows", *common, 1, 0)
    rate = whole["bytes"] / whole["seconds"] / 1e6
    print(f"rows of a pass: {len(whole['ids']):,}, {rate:.0f} MB/s; {growth(whole['memory'])}")
    first, second = (set(measure("rows", *common, 2, lane)["ids"]) for lane in (0, 1))
    both, missing = len(first & second), len(set(whole["ids"]) - first - second)
    print(f"two readers: {len(first):,} and {len(second):,} rows; {both} twice, {missing} never")
    start = measure("blocks", *common, None)
    print(f"blocks: {start['rate'] / 1e6:.2f} M tokens/s on one core; {growth(start['memory'])}")
    resumed = measure("blocks", *common, whole["cursor"])
    again = f"{resumed['again'] / 1e6:.1f} MB, {resumed['again'] / total:.2%} of the stream"
    print(f"resume at 90 %: {again}, until the first block; {growth(resumed['memory'])}")


if __name__ == "__main__":
    main()
