"""What a run is doing: live lines on a terminal, a few lines elsewhere; and how long it took."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pipelines.console import console, say
from pipelines.reporting.units import clock

PATIENCE = 5.0
"""Seconds after which a phase is announced, where no live line shows it."""
REFRESHES = 4
"""Times a second that live lines are drawn."""


class RunProgress:
    """The phases of a run, which may be nested, and the seconds of each.

    On a terminal each phase has a live line while it lasts. Elsewhere one that takes longer than
    `PATIENCE` seconds is announced once; as JSON lines, every phase is.
    """

    def __init__(self, started: float | None = None) -> None:
        """Take when the run has started, by `time.perf_counter`; by default now."""
        out = console()
        self.seconds: dict[str, float] = defaultdict(float)
        """Wall time of each phase, without that of the phases inside it."""
        self._lines = LiveLines(out) if out.live else None
        self._open: list[str] = []
        self._since = time.perf_counter()
        self._started = self._since if started is None else started

    def __enter__(self) -> RunProgress:
        if self._lines is not None:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        if self._lines is not None:
            self._lines.stop()

    @property
    def is_live(self) -> bool:
        """Tell whether phases have live lines."""
        return self._lines is not None

    @contextmanager
    def phase(
        self, name: str, text: str = "", *, total: int | None = None, has_lines: bool = False
    ) -> Iterator[None]:
        """Count the time inside for a phase, and show `text`, if any, while it lasts.

        `total` is the number of steps, of which `advance` tells how many are done. A phase that
        `has_lines` of its own is not announced.
        """
        self._charge()
        self._open.append(name)
        try:
            with self._shown(text, total, has_lines):
                yield
        finally:
            self._charge()
            self._open.pop()

    def advance(self, done: int, *, total: int | None = None, status: str | None = None) -> None:
        """Show the steps of the innermost phase that are done, and a line on its state."""
        if self._lines is not None:
            self._lines.show(done, total, status)

    def seconds_of(self, name: str) -> float:
        """Return the seconds of a phase until now."""
        self._charge()
        return self.seconds[name]

    def elapsed(self) -> float:
        """Return the seconds since the start of the run."""
        return time.perf_counter() - self._started

    def timing(self) -> dict[str, float]:
        """Return the seconds of every phase until now."""
        self._charge()
        return {name: round(seconds, 2) for name, seconds in self.seconds.items()}

    def _shown(self, text: str, total: int | None, has_lines: bool) -> AbstractContextManager[None]:
        """Return the context in which a phase is shown."""
        if not text:
            return nullcontext()
        if self._lines is not None:
            return self._lines.line(text, total)
        return announced(text, self._open[-1], late=not has_lines)

    def _charge(self) -> None:
        """Count the time since the last call for the innermost phase."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def announced(text: str, phase: str, *, late: bool) -> Iterator[None]:
    """Print a line on what happens inside: at once as JSON lines, or else `late` if it is long."""
    out = console()
    if out.json_lines:
        say(f"  {text}", {"event": "phase", "phase": phase})
    if out.json_lines or out.quiet or not late:
        yield
        return
    timer = threading.Timer(PATIENCE, say, [f"  {text}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class LiveLines(Progress):
    """A line for each open phase, and one on the state of the latest that told of it."""

    def __init__(self, out: Console) -> None:
        self.status = ""
        super().__init__(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            StepsColumn(),
            LeftColumn(),
            console=out,
            refresh_per_second=REFRESHES,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the lines, the state last."""
        yield from super().get_renderables()
        if self.status:
            yield Text(f"  {self.status}")

    @contextmanager
    def line(self, text: str, total: int | None) -> Iterator[None]:
        """Show a line while the block lasts."""
        task, before = self.add_task(text, total=total), self.status
        try:
            yield
        finally:
            self.remove_task(task)
            self.status = before

    def show(self, done: int, total: int | None, status: str | None) -> None:
        """Change the last line, and the state."""
        self.update(self.task_ids[-1], completed=done, total=total)
        if status is not None:
            self.status = status


class StepsColumn(ProgressColumn):
    """Steps that are done, and all steps where their number is known."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        return Text(f"{int(task.completed):,}/{int(task.total):,}", style="progress.download")


class LeftColumn(ProgressColumn):
    """The time that is left, or the time since the start where that is not known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(clock(task.elapsed or 0), style="progress.elapsed")
        left = task.time_remaining
        return Text("" if left is None else f"{clock(left)} left", style="progress.remaining")
