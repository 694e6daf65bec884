"""Times as people read them. Imports no torch."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return seconds as a text, such as 8.3 s, 35 s, 4 min 10 s or 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS, or M:SS below an hour, for a time that changes on the screen."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
