"""What ends a command: its message and its exit code. Imports no torch."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from pipelines.abandonable import end_process
from pipelines.errors import DataError, Problem, RecipeError, RunError
from pipelines.log import scrubbed

EXITS = "GPT2_RECIPES_EXITS"
"""Environment variable of the processes of a run: the folder in which they leave their exits."""


@dataclass(frozen=True)
class Exit:
    """How a process ended: its exit code, and the lines to show."""

    code: int
    lines: list[str]


class report_errors:  # noqa: N801 - a context manager, used as a word
    """Show what ends a run as a few lines and an exit code."""

    def __enter__(self) -> None:
        for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show becomes an escape
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RecipeError):
            stop([as_typed(problem) for problem in error.problems], error.exit_code)
        if isinstance(error, RunError):
            stop(str(error).splitlines(), error.exit_code)
        if isinstance(error, DataError):
            # A loader's worker wraps it in a trace, which run.log has.
            stop(str(error).rpartition("DataError: ")[2].splitlines(), 3)
        if isinstance(error, KeyboardInterrupt):
            stop(["stopped by Ctrl-C."], 130)
        if isinstance(error, BrokenPipeError):  # as `| head` closes it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0)
        if isinstance(error, Exception):
            stop(unexpected(error), 1, everywhere=True)


def unexpected(error: Exception) -> list[str]:
    """Return the lines for an error that is ours, or of another process: short where it is logged.

    On two ranks, one that loses the other fails too, by an error that says little.
    """
    notes = getattr(error, "__notes__", [])
    lines = traceback.format_exception(error)
    if notes:
        lines = [f"{type(error).__name__}: {error}".splitlines()[0], *notes]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        lines = [f"rank {os.environ['RANK']}: {lines[0]}", *lines[1:]]
        if EXITS not in os.environ:
            lines.append("If another rank ended first, the launcher names it below as root cause.")
        lines.append("Run the same command again to resume from the last checkpoint.")
    return "\n".join(lines).splitlines()


def as_typed(problem: Problem) -> str:
    """Name a field as the command line does: flags in small letters, TEXT and OUT as they are."""
    name = problem.path
    flag = name.isidentifier() or "." in name
    file = Path(name).suffix in (".json", ".safetensors", ".jinja")
    if flag and not file and "/" not in name and not name.isupper():
        name = "--" + name.replace("_", "-")
    return f"{name}: {problem.message}"


def stop(lines: list[str], code: int, *, everywhere: bool = False) -> NoReturn:
    """Print the lines, once from the first process or from each, and exit.

    A process that `gpt2-recipes train` has started leaves them to it.
    """
    if folder := os.environ.get(EXITS):
        leave(Exit(code, lines), Path(folder))
    elif everywhere or os.environ.get("RANK", "0") == "0":
        print(scrubbed("\n".join(lines)), file=sys.stderr)
    end_process(code)
    raise SystemExit(code)


def leave(exit_: Exit, folder: Path) -> None:
    """Write how this process ends to a file whose name sorts by time."""
    name = f"{time.time_ns()}-{os.environ.get('RANK', '0')}"
    unfinished = folder / f"{name}.tmp"
    unfinished.write_text(json.dumps(asdict(exit_)), encoding="utf-8")
    unfinished.rename(folder / f"{name}.json")
