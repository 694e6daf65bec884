"""Verbs about this machine: parse, call, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def hub(folder: Path = Path("runs/hub"), port: int = 8643) -> None:
    """Serve a Hub on this machine, for trying and testing.

    The folder's random token is printed, and is in its file `token`, which only you can read.

    Args:
        folder: Folder of the repositories and the token.
        port: Port on loopback; 0 takes a free one.
    """
    from pipelines.hub.local_hub import main as serve

    serve(folder, port)


def doctor(
    config_file: Annotated[
        Path | None,
        tyro.conf.arg(help_behavior_hint="(default: what `accelerate config` wrote, if anything)"),
    ] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Show what this machine can do, and what would stop a run on it.

    Exits with 1 if something would. Takes about two seconds.

    Args:
        config_file: Accelerate config: a file, or the name of a shipped one.
        as_json: Print JSON in place of the screen.
    """
    from pipelines.doctor.command import doctor as examine

    if not examine(config_file, as_json=as_json):
        raise SystemExit(1)


def selftest() -> None:
    """Inject faults into small runs, and check that they recover.

    Exits with 1 if one does not.
    """
    from pipelines.selftest import selftest as check

    if not check():
        raise SystemExit(1)
