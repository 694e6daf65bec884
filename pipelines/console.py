"""Lines of a run, printed by rank 0 and written to run.log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.control import Control

from pipelines.log import LOG, scrubbed


def say(line: str, fields: Mapping[str, Any] | None = None, *, style: str | None = None) -> None:
    """Print a line from rank 0; as JSON lines it has the `fields` too."""
    console().print(line, fields=fields, markup=False, style=style)


class RunConsole(Console):
    """A console whose lines go to run.log too, and that shows no secrets.

    What the terminal cannot show is escaped. The cursor is never hidden: a process that is killed
    would not bring it back. With `json_lines` each print is one JSON object on a line, with the
    time and the message.
    """

    json_lines = False

    def print(self, *objects: Any, fields: Mapping[str, Any] | None = None, **options: Any) -> None:
        if all(isinstance(each, Control) for each in objects):  # of a live display
            super().print(*objects, **options)
            return
        message = " ".join(map(str, objects))
        if not self.quiet:
            LOG.info(message)
        if self.json_lines:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            event = {"time": now, "message": message.strip()} | dict(fields or {})
            text = json.dumps(event, default=str)
            super().print(scrubbed(text), markup=False, no_wrap=True, soft_wrap=True)
            return
        shown = (self.printable(each) if isinstance(each, str) else each for each in objects)
        super().print(*shown, **options)

    def printable(self, text: str) -> str:
        """Return a text without secrets, in characters that the terminal has."""
        return scrubbed(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor as it is."""
        return False

    @property
    def live(self) -> bool:
        """Tell whether a line can be drawn again: on a terminal, and not as JSON lines."""
        able = self.is_terminal and not self.is_dumb_terminal
        return able and not self.quiet and not self.json_lines


def console() -> RunConsole:
    """Return the console of the process, which is silent on all ranks but the first."""
    return _console(quiet=not PartialState().is_main_process)


@cache
def _console(*, quiet: bool) -> RunConsole:
    return RunConsole(quiet=quiet, soft_wrap=True, highlight=False)


@contextmanager
def json_lines(wanted: bool) -> Iterator[None]:
    """Print JSON lines inside, if wanted."""
    out = console()
    before, out.json_lines = out.json_lines, wanted
    try:
        yield
    finally:
        out.json_lines = before
