"""How a command ends: its message and its exit code. Imports no torch."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from pipelines.abandonable import end_process, end_process_now
from pipelines.collector import collecting_rarely
from pipelines.errors import Problem, RankError, RecipeError, RunError
from pipelines.log import quiet_bitsandbytes, quiet_torch_sockets, scrubbed

EXITS = "GPT2_RECIPES_EXITS"
"""Environment variable of a run's processes: the folder to which they write how they ended."""


@dataclass(frozen=True)
class Exit:
    """How a process ended: its exit code, and the lines to show."""

    code: int
    lines: list[str]
    secondhand: bool = False
    """Whether another rank's error, or its loss, ended the process."""


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn an error that ends a command into a few lines and an exit code.

    Nothing else is printed of errors: bitsandbytes' warnings would come before the message. The
    garbage collector runs rarely until the libraries are imported, and `prepare_process` is called.
    """
    quiet_bitsandbytes()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        quiet_torch_sockets()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # escape what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with collecting_rarely():
            yield
    except RankError as error:
        stop(error.lines, error.exit_code, everywhere=error.speaks, secondhand=not error.own)
    except RunError as error:
        stop(message_of(error), error.exit_code)
    except KeyboardInterrupt:
        stop(["stopped by Ctrl-C."], 130)
    except BrokenPipeError:  # closed by a reader such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        stop(unexpected(error), 1, everywhere=True)


def message_of(error: RunError) -> list[str]:
    """Return the lines to print for an error."""
    if isinstance(error, RecipeError):
        return [as_typed(problem) for problem in error.problems]
    # A worker of a data loader puts its trace before the message; run.log has it.
    return str(error).rpartition("DataError: ")[2].splitlines()


def unexpected(error: Exception) -> list[str]:
    """Return the lines for an unexpected error: short if the run has logged its trace."""
    notes = getattr(error, "__notes__", [])
    lines = traceback.format_exception(error)
    if notes:
        lines = [f"{type(error).__name__}: {error}".splitlines()[0], *notes]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        lines = [f"rank {os.environ['RANK']}: {lines[0]}", *lines[1:]]
        lines.append("Run the same command again to resume from the last checkpoint.")
    return "\n".join(lines).splitlines()


def as_typed(problem: Problem) -> str:
    """Return a problem with its field as the command line names it: --a-flag, TEXT or a file."""
    name = problem.path
    flag = (name.isidentifier() or "." in name) and name not in sys.argv[1:]  # nor typed by itself
    file = Path(name).suffix in (".json", ".safetensors", ".jinja")
    if flag and not file and "/" not in name and not name.isupper():
        name = "--" + name.replace("_", "-")
    return f"{name}: {problem.message}"


def stop(
    lines: list[str], code: int, *, everywhere: bool = False, secondhand: bool = False
) -> NoReturn:
    """Print the lines, from the first process of a machine or from `everywhere`, and exit.

    A process that `gpt2-recipes train` started leaves the lines for it in a file instead.
    """
    show(Exit(code, lines, secondhand), everywhere=everywhere)
    end_process(code)
    raise SystemExit(code)


def stop_now(lines: list[str], code: int, *, everywhere: bool = False) -> NoReturn:
    """Do what `stop` does from any thread, without waiting for what the process is doing."""
    show(Exit(code, lines, secondhand=True), everywhere=everywhere)
    end_process_now(code)


def show(exit_: Exit, *, everywhere: bool) -> None:
    """Print how the process ends, or leave it to the launcher."""
    first = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
    if folder := os.environ.get(EXITS):
        leave(exit_, Path(folder))
    elif everywhere or first:
        print(scrubbed("\n".join(exit_.lines)), file=sys.stderr)


def leave(exit_: Exit, folder: Path) -> None:
    """Write how this process ended to a file whose name sorts by time."""
    name = f"{time.time_ns()}-{os.environ.get('RANK', '0')}"
    unfinished = folder / f"{name}.tmp"
    unfinished.write_text(json.dumps(asdict(exit_)), encoding="utf-8")
    unfinished.rename(folder / f"{name}.json")
