"""Verbs about this machine: parse, call, nothing else."""

from __future__ import annotations

from pathlib import Path


def hub(folder: Path = Path("runs/hub"), port: int = 8643) -> None:
    """Serve a Hub on this machine, for trying and testing.

    The folder's random token is printed, and is in its file `token`, which only you can read.

    Args:
        folder: Folder of the repositories and the token.
        port: Port on loopback; 0 takes a free one.
    """
    from pipelines.hub.local_hub import main as serve

    serve(folder, port)


def selftest() -> None:
    """Inject faults into small runs, and check that they recover.

    Exits with 1 if one does not.
    """
    from pipelines.selftest import selftest as check

    if not check():
        raise SystemExit(1)
