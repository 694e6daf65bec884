"""The address that a page is served at. Imports no torch."""

from __future__ import annotations

import errno
import socket

from pipelines.errors import Problem, RecipeError


def usable_port(host: str, port: int) -> int:
    """Return a port that can be listened on. Raise RecipeError for one that cannot."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        unknown = isinstance(error, socket.gaierror) or (
            isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL
        )
        if not unknown:
            raise RecipeError([Problem("port", taken(port))]) from None
    text = f"{host} is no IPv4 address of this machine. Use 127.0.0.1, or 0.0.0.0 for all."
    raise RecipeError([Problem("host", text)])


def taken(port: int) -> str:
    """Return the message for a port that cannot be used."""
    return f"{port} is taken, or cannot be used. Give another, or 0 for a free one."
