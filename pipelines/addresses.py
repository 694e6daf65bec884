"""The addresses that servers listen on. Imports no torch."""

from __future__ import annotations

import errno
import socket

from pipelines.errors import Problem, RecipeError


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the address, but does not listen yet: clients are refused.

    Raise RecipeError for a host that is not this machine's, and for a port that is in use.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise refusal(host, port, OverflowError())
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise refusal(host, port, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise refusal(host, port, error) from None
    return listener


def usable_port(host: str, port: int) -> int:
    """Return a port to listen on, a free one for 0. Raise RecipeError, as `bind` does."""
    with bind(host, port) as listener:
        return int(listener.getsockname()[1])


def listen(listener: socket.socket) -> None:
    """Let clients connect. Raise RecipeError where another process has begun to listen there."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(2048)
    except OSError as error:
        raise refusal(host, port, error) from None


def refusal(host: str, port: int, error: Exception) -> RecipeError:
    """Return the error for an address that cannot be listened on."""
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        text = f"{port} is in use. Give another, or 0 for a free one."
        return RecipeError([Problem("port", text)])
    if isinstance(error, OverflowError) or code == errno.EACCES:
        text = f"{port} cannot be used. Give one from 1024 to 65535, or 0 for a free one."
        return RecipeError([Problem("port", text)])
    text = f"{host!r} is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for all."
    return RecipeError([Problem("host", text)])


def url_of(listener: socket.socket) -> str:
    """Return the address as a client types it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
