"""Serve the page of a result until a signal."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from pipelines.addresses import refusal, usable_port
from pipelines.console import say
from pipelines.demo.examples import read_examples
from pipelines.hub.load import LoadedResult
from pipelines.inference.loading import load_to_infer
from pipelines.process import quiet_libraries
from pipelines.recipe.values import Precision

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""What keeps Gradio from sending anything, read when it is imported."""


@quiet_libraries()
def serve(
    repo: str,
    *,
    host: str,
    port: int,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Serve the page of a result until SIGINT or SIGTERM; port 0 takes a free one.

    Raise RecipeError for a host or a port that cannot be used.
    """
    port = usable_port(host, port)
    loaded = load_to_infer(repo, revision, base=base, precision=precision)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with served_page(loaded, host, port) as url:
        say(f"{loaded.recipe.name}: {url} until Ctrl-C")
        stop.wait()


@contextmanager
def served_page(loaded: LoadedResult, host: str, port: int) -> Iterator[str]:
    """Serve the page of a result from threads inside; yield its address.

    Nothing is sent to Gradio, and the page loads nothing from elsewhere. Raise RecipeError for a
    port that is taken.
    """
    os.environ |= QUIET
    reach_without_proxy(host)
    from pipelines.demo.page import CSS, make_page

    page = make_page(loaded, read_examples(loaded.recipe.folder, loaded.recipe.task))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            css=CSS,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
        )
    except OSError:  # taken since it was looked at
        raise refusal(host, port, OSError(errno.EADDRINUSE, "in use")) from None
    try:
        yield f"http://{host}:{port}"
    finally:
        page.close(verbose=False)


def reach_without_proxy(host: str) -> None:
    """Let Gradio, which asks its own server whether it runs, find it where there is a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", host)))
