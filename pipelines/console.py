"""Lines of a run, printed by rank 0 and written to run.log."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from rich.console import Console

from pipelines.log import LOG, scrubbed


def say(line: str) -> None:
    """Print a line from rank 0."""
    console().print(line, markup=False)


class RunConsole(Console):
    """A console whose lines go to run.log too, and that shows no secrets.

    What the terminal cannot show is escaped.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        if not self.quiet:
            LOG.info(" ".join(map(str, objects)))
        shown = (self.printable(each) if isinstance(each, str) else each for each in objects)
        super().print(*shown, **options)

    def printable(self, text: str) -> str:
        """Return a text without secrets, in characters that the terminal has."""
        return scrubbed(text).encode(self.encoding, "backslashreplace").decode(self.encoding)


def console() -> Console:
    """Return a console that is silent on all ranks but the first."""
    return RunConsole(quiet=not PartialState().is_main_process, soft_wrap=True, highlight=False)
