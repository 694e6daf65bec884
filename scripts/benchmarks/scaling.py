"""Compute what GPT-2 of four sizes needs on 1 to 64 GPUs, and check the formulas on two processes.

    python scripts/benchmarks/scaling.py             # the tables of docs/scaling.md
    python scripts/benchmarks/scaling.py --measure   # the formulas against two processes

The tables come from the formulas of `gpt2-recipes plan` and of sharing.py; nothing in them was
measured on GPUs. `--measure` trains a GPT-2 in two processes over gloo, with torch's DDP and with
FSDP2, and compares the bytes that a process sends in a step and the memory that it keeps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from sharing import (
    DDP,
    FSDP2,
    LINKS,
    MACHINE,
    ZERO2,
    ZERO3,
    Link,
    computing_seconds,
    held,
    sending_seconds,
    sent,
)
from transformers import GPT2Config

from pipelines import CausalLM, DatasetSource, Recipe
from pipelines.planning.gpus import GPUS, GpuBytes, flops_per_token, gpu_bytes, variants
from pipelines.planning.parameters import Parameters, count_parameters, empty_model
from pipelines.recipe.values import Model

SIZES = {
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1.5B": (48, 25, 1600),
}
"""Layers, heads and width of gpt2, gpt2-medium, gpt2-large and gpt2-xl."""
LENGTH = 1024
ROWS = 512
"""Rows of an optimizer step over all GPUs: half a million tokens."""
H100 = next(gpu for gpu in GPUS if gpu.name.startswith("H100"))


@dataclass(frozen=True)
class Subject:
    """A size with a method."""

    size: str
    method: str
    parameters: Parameters
    needed: GpuBytes
    flops: float
    """Of a token."""

    @property
    def trained(self) -> int:
        """Return the number of trained parameters."""
        return self.needed.gradients // 4

    def fitting(self, engine: str, num_gpus: int) -> int:
        """Return the rows of a forward pass that fit an H100."""
        free = H100.gigabytes * 1e9 - held(engine, self.needed, self.parameters, num_gpus)
        return int(free / self.needed.per_row)

    def rows(self, engine: str, num_gpus: int) -> int:
        """Return the rows of a forward pass: those that fit, at most the GPU's part of a step."""
        return min(ROWS // num_gpus, self.fitting(engine, num_gpus))


def subjects(folder: Path, sizes: Collection[str] = SIZES.keys()) -> Iterator[Subject]:
    """Yield each size with each method; configs are written to a folder."""
    for size in sizes:
        layers, heads, width = SIZES[size]
        GPT2Config(n_layer=layers, n_head=heads, n_embd=width).save_pretrained(folder / size)
        save_file({}, folder / size / "model.safetensors")  # shapes are enough
        recipe = Recipe(
            name=size,
            task=CausalLM(dataset=DatasetSource(path="rows.jsonl"), block_size=LENGTH),
            model=Model(name_or_path=str(folder / size)),
        )
        for method, variant in variants(recipe).items():
            parameters = count_parameters(empty_model(variant, None, ()))
            yield Subject(
                size,
                method,
                parameters,
                gpu_bytes(variant, (), parameters, LENGTH),
                flops_per_token(variant, parameters, LENGTH),
            )


def memory_table(found: list[Subject]) -> Iterator[str]:
    """Yield the lines of the memory on a GPU, without the activations of the rows."""
    columns = [(DDP, 1), (FSDP2, 8), (FSDP2, 64), (ZERO2, 8), (ZERO2, 64), (ZERO3, 8), (ZERO3, 64)]
    names = ["DDP, any number", *(f"{engine}, {number}" for engine, number in columns[1:])]
    yield from header("size", "method", *names)
    for each in found:
        quantised = each.method in ("8-bit", "4-bit")
        cells = [
            "–"
            if quantised and engine in (FSDP2, ZERO3)
            else gigabytes(held(engine, each.needed, each.parameters, number))
            for engine, number in columns
        ]
        yield row(each.size, each.method, *cells)


def rows_table(found: list[Subject]) -> Iterator[str]:
    """Yield the lines of the activations of a row, and of how many rows fit an H100."""
    columns = [(DDP, 1), (FSDP2, 8), (FSDP2, 64)]
    names = ["DDP", *(f"{engine}, {number}" for engine, number in columns[1:])]
    yield from header("size, full", "a row, GB", *(f"rows, {name}" for name in names))
    for each in found:
        if each.method == "full":
            cells = [str(each.fitting(engine, number)) for engine, number in columns]
            yield row(each.size, gigabytes(each.needed.per_row), *cells)


def bytes_table(found: list[Subject]) -> Iterator[str]:
    """Yield the lines of the bytes that a GPU of 8 sends in a step of one pass."""
    engines = (DDP, FSDP2, ZERO2, ZERO3)
    yield from header("size", "method", *engines)
    for each in found:
        if each.method in ("full", "LoRA"):
            cells = [sent(engine, each.trained, each.parameters, MACHINE) for engine in engines]
            yield row(each.size, each.method, *map(gigabytes, cells))


def time_table(found: list[Subject]) -> Iterator[str]:
    """Yield the lines of the seconds of a step of 512 rows: computing, and sending by link."""
    yield from header(
        "size", "GPUs", "rows a pass", "computing", *(f"{link.name}: DDP, FSDP2" for link in LINKS)
    )
    for each in found:
        if each.method != "full":
            continue
        for number in (1, 2, 8, 16, 64):
            rows = {engine: each.rows(engine, number) for engine in (DDP, FSDP2)}
            computing = computing_seconds(each.flops * ROWS * LENGTH, H100, number)
            cells = [
                ", ".join(sending(each, engine, number, link, rows[engine]) for engine in rows)
                if applies(link, number)
                else "–"
                for link in LINKS
            ]
            shown = f"{rows[DDP]}, {rows[FSDP2]}"
            yield row(each.size, str(number), shown, seconds(computing), *cells)


def applies(link: Link, num_gpus: int) -> bool:
    """Tell whether a link can be the slowest of that many GPUs."""
    return (num_gpus > MACHINE) if link.between_machines else (1 < num_gpus <= MACHINE)


def sending(each: Subject, engine: str, num_gpus: int, link: Link, rows: int) -> str:
    """Return the seconds in which an engine sends what it sends in a step."""
    if rows == 0:
        return "–"
    passes = -(-ROWS // num_gpus // rows)
    num_bytes = sent(engine, each.trained, each.parameters, num_gpus, passes=passes)
    return seconds(sending_seconds(num_bytes, link))


def header(*names: str) -> Iterator[str]:
    """Yield the first two lines of a table."""
    yield row(*names)
    yield "|" + "---|" * len(names)


def row(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def gigabytes(number: float) -> str:
    """Return bytes in GB."""
    return f"{number / 1e9:.3g}" if number >= 1e7 else f"{number / 1e9:.3f}"


def seconds(number: float) -> str:
    """Return seconds with two digits."""
    return f"{number:.2g}"


def main() -> None:
    """Print the tables, or measurements against the formulas."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        from two_processes import measure

        measure()
        return
    with tempfile.TemporaryDirectory() as folder:
        found = list(subjects(Path(folder)))
    for title, table in (
        ("Memory of a GPU, GB", memory_table),
        ("Rows of 1,024 tokens of a forward pass that fit an H100", rows_table),
        ("Bytes that a GPU of 8 sends in a step of one pass, GB", bytes_table),
        ("Seconds of a step of 512 rows on H100s", time_table),
    ):
        print(f"{title}\n", *table(found), "", sep="\n")


if __name__ == "__main__":
    main()
