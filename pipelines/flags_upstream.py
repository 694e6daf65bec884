"""Private names of tyro."""

from __future__ import annotations

import os

import tyro


def honour_no_color() -> None:
    """Turn tyro's colours off where NO_COLOR is set, which tyro itself does not read.

    Its public way is an environment variable of its own, read when tyro is imported.
    """
    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False
