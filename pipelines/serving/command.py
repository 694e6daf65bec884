"""`gpt2-recipes serve`: load a result, listen, and end cleanly."""

from __future__ import annotations

import signal
import socket

import uvicorn
from fastapi import FastAPI

from pipelines.addresses import bind, listen, url_of
from pipelines.console import say
from pipelines.inference.loading import load_to_infer
from pipelines.recipe.values import Precision
from pipelines.serving.answer import answer_requests
from pipelines.serving.app import make_app
from pipelines.serving.limits import Limits


def serve(
    repo: str,
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Answer with the predictions of a result until SIGTERM or Ctrl-C.

    The port is taken before the model is loaded, and clients are refused until it has answered
    once. Raise RecipeError for an address that cannot be listened on, and what `load_to_infer`
    does.
    """
    listener = bind(host, port)
    with listener:
        loaded = load_to_infer(repo, revision, base=base, precision=precision)
        columns = loaded.recipe.task.interface.columns
        (first,) = answer_requests(loaded, [[dict.fromkeys(columns, "first")]], batch_size=1)
        if isinstance(first, Exception):
            raise first
        app = make_app(loaded, limits)
        listen(listener)
        say(f"{loaded.recipe.name} answers at {url_of(listener)}/predict")
        say("  /model has its columns and limits, /openapi.json the types; Ctrl-C ends")
        run_server(app, listener)
    say("ended; all requests were answered")


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, and then until all that was asked is answered.

    A second Ctrl-C does not wait.
    """
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listener])
