"""The formats of `gpt2-recipes export`, and what each can hold. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import Problem, RecipeError
from pipelines.results.new_folder import check_new
from pipelines.tasks.base import Task

FormatName = Literal["safetensors", "onnx", "gguf"]


@dataclass(frozen=True)
class Format:
    """A format: the precisions that its weights can have, the default first."""

    precisions: tuple[str, ...]
    packages: tuple[str, ...] = ()
    """What writes it, from the extra of its name."""
    language_models_only: bool = False
    hint: str = ""
    """What to do for another precision."""


FORMATS: dict[FormatName, Format] = {
    "safetensors": Format(("fp32",)),
    "onnx": Format(("fp32", "int8"), ("onnx", "onnxruntime")),
    "gguf": Format(
        ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
        ("gguf",),
        language_models_only=True,
        hint=" llama.cpp's `llama-quantize` makes others, such as Q4_K_M, from F16.",
    ),
}
SUFFIXES = (".gguf", ".onnx", ".safetensors")


def check_precision(to: FormatName, quantize: str | None) -> str:
    """Return the precision of the weights, spelt as the format does; without one the default.

    Raise RecipeError for one that the format does not have, or that nothing here writes.
    """
    given = FORMATS[to]
    if quantize is None:
        return given.precisions[0]
    for precision in given.precisions:
        if quantize.lower() == precision.lower():
            return precision
    listed = ", ".join(given.precisions)
    text = f"{quantize!r} cannot be written as {to}. It can be {listed}.{given.hint}"
    raise RecipeError([Problem("quantize", text)])


def check_task(to: FormatName, task: Task) -> None:
    """Raise RecipeError for a task whose model the format cannot hold."""
    if FORMATS[to].language_models_only and task.head is not None:
        text = f"{to} holds language models, and this is the result of {type(task).__name__}. "
        raise RecipeError([Problem("to", f"{text}Use --to onnx.")])


def check_export(out: Path, to: FormatName, quantize: str | None) -> str:
    """Return the precision of the weights, where the format and OUT allow it."""
    precision = check_precision(to, quantize)
    if out.suffix in SUFFIXES:
        text = f"{out} is named like a file, and a folder is written. Give the name of a folder."
        raise RecipeError([Problem("OUT", text)])
    check_new(out)
    return precision
