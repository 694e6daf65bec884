"""The findings as one screen, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.doctor.finding import Finding
from pipelines.log import scrubbed

MARKS = {"ok": ("✓", "+", "green"), "caution": ("!", "!", "yellow"), "problem": ("✗", "x", "red")}
"""The sign of each mark, the same in ASCII, and its colour."""
WIDEST = 100
"""Columns of a line; more are hard to read."""


def print_screen(findings: Sequence[Finding]) -> None:
    """Print a line for each finding, with its fix below, and last whether a run can start."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    ascii_only = not can_show(console, "✓✗→")
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        sign, in_ascii, colour = MARKS[finding.mark]
        mark = Text(in_ascii if ascii_only else sign, style=f"bold {colour}")
        table.add_row(mark, Text(finding.name), shown(finding.text, console))
        if finding.fix:
            arrow = "-> " if ascii_only else "→ "
            table.add_row("", "", shown(arrow + finding.fix, console))
    console.print(table)
    console.print(shown(summary(findings), console))


def summary(findings: Sequence[Finding]) -> str:
    """Return whether a run can start, and how many findings need attention."""
    problems = sum(each.mark == "problem" for each in findings)
    cautions = sum(each.mark == "caution" for each in findings)
    counts = [f"{n} {name}{'s' * (n > 1)}" for n, name in named(problems, cautions) if n]
    start = "A run cannot start" if problems else "A run can start"
    return f"{start}: {', '.join(counts)}." if counts else f"{start}."


def named(problems: int, cautions: int) -> list[tuple[int, str]]:
    """Return both numbers with their nouns."""
    return [(problems, "problem"), (cautions, "caution")]


def can_show(console: Console, text: str) -> bool:
    """Tell whether the terminal's encoding has the characters of a text."""
    return text.encode(console.encoding, "ignore").decode(console.encoding) == text


def shown(text: str, console: Console) -> Text:
    """Return a text without secrets, in characters that the terminal has."""
    clean = scrubbed(text).encode(console.encoding, "backslashreplace").decode(console.encoding)
    return Text(clean)


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what the screen shows, for machines."""
    return {
        "can_start": all(each.mark != "problem" for each in findings),
        "findings": [
            {name: scrubbed(text) for name, text in asdict(each).items()} for each in findings
        ],
    }
