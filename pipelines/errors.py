"""Errors that end a command, each with its exit code. Imports no torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One wrong value: the field's path, what it holds and what would be right."""

    path: str
    message: str


class RunError(Exception):
    """An error that ends a command with a message; the process exits with `exit_code`."""

    exit_code: int


class RecipeError(RunError):
    """A recipe that cannot run, with all its problems."""

    exit_code = 2

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        super().__init__("\n".join(f"{p.path}: {p.message}" for p in problems))

    def __reduce__(self) -> Any:
        return RecipeError, (self.problems,)


class NonFiniteError(RunError):
    """A loss, a gradient or a metric that is not finite; the last checkpoint is finite."""

    exit_code = 4


class CheckpointError(RunError):
    """Checkpoints that are all damaged, or that cannot be written."""

    exit_code = 5


class Preempted(RunError):  # noqa: N818 - nothing went wrong
    """A signal stopped the run; the same command resumes it."""

    exit_code = 75


class EndedEarly(Exception):  # noqa: N818 - nothing went wrong
    """A callback ends a run on purpose, as a search prunes a trial."""


class PublishError(RunError):
    """The Hub did not take a result. It is complete in its folder; the message says what to do."""

    exit_code = 6

    def __init__(self, folder: Path, repo: str, options: list[str], cause: object):
        again = shlex.join(["gpt2-recipes", "publish", str(folder), repo, *options])
        super().__init__(
            f"Not published: {cause}\nThe result is complete in {folder}. Finish with\n    {again}"
        )


class ExportError(RunError):
    """An exported file that does not give what its model gives; it was deleted."""

    exit_code = 1


class WorkerError(RunError):
    """A process that prepares rows was killed; the same command prepares them again."""

    exit_code = 75


class DataError(RunError, ValueError):
    """Rows that cannot be used; the message names the file and the row."""

    exit_code = 3


class RankError(RunError):
    """What ends this rank together with the others: the error of a rank, or the loss of one."""

    def __init__(self, lines: list[str], code: int, *, own: bool = False, speaks: bool = False):
        """Take the message and exit code that all ranks end with.

        `own` tells that the error is this rank's; `speaks` that the rank prints the message though
        it is not the first of its machine, which is lost.
        """
        self.lines = lines
        self.exit_code = code
        self.own = own
        self.speaks = speaks
        super().__init__("\n".join(lines))
