"""The verb that serves a result: parse, call, nothing else."""

from __future__ import annotations

from typing import Annotated

import tyro

from pipelines.cli.checks import check_extra, check_result, check_served
from pipelines.cli.results import Repo
from pipelines.recipe.values import Precision
from pipelines.serving.limits import Limits

DEFAULTS = Limits()


def serve(
    repo: Repo,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Annotated[Limits, tyro.conf.arg(name="")] = DEFAULTS,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Answer HTTP requests with labels or answers.

    POST {"rows": [{"text": "..."}]} to /predict. It listens on this machine alone, unless told, and
    knows no users: put a proxy with TLS and passwords before it.

    Args:
        repo: Folder of a run, or Hub id.
        host: Address to listen on; 0.0.0.0 for all of the machine.
        port: Port to listen on; 0 for a free one.
        limits: What a request may hold, and how requests share a batch.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        precision: Precision of the base, in place of the one that the adapter was trained on.
    """
    check_result(repo)
    check_served(repo, revision, limits)
    check_extra("fastapi", extra="serve", verb="serve")
    check_extra("uvicorn", extra="serve", verb="serve")
    from pipelines.serving.command import serve as serve_result

    serve_result(
        repo, limits, host=host, port=port, revision=revision, base=base, precision=precision
    )
