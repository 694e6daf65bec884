"""The HTTP interface: predictions, health, what is served, and errors, all as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult
from pipelines.log import LOG
from pipelines.serving.answer import answer_requests
from pipelines.serving.batcher import Batcher, Busy
from pipelines.serving.limits import Limits
from pipelines.serving.schema import (
    Failure,
    Ready,
    Served,
    messages_of,
    request_type,
    response_type,
    rows_of,
)

NO_TELEMETRY: Any = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,  # by the environment
}
FAILURES = {
    400: "The body is not JSON.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    422: "Rows that cannot be used, or over a limit.",
    503: "Too many rows wait.",
}
LEFT = 499
"""Status, in logs only, of a request whose client has left; nginx's."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def make_app(loaded: LoadedResult, limits: Limits) -> FastAPI:
    """Return the application that answers with the predictions of a result.

    Its documentation is `/openapi.json` alone: FastAPI's pages load scripts from elsewhere.
    """
    answer = partial(answer_requests, loaded, batch_size=limits.batch_size)
    batcher = Batcher(answer, limits)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        async with batcher.running():
            yield

    app = FastAPI(
        title=loaded.recipe.name,
        lifespan=running,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes)
    add_errors(app)
    add_predict(app, loaded, limits, batcher)
    served = describe(loaded, limits)

    @app.get("/health")
    async def health() -> Ready:
        """Tell that the model is loaded: before, nothing listens."""
        return Ready()

    @app.get("/model")
    async def model() -> Served:
        """Return what is served, its columns and labels, and the limits of requests."""
        return served

    return app


def add_predict(app: FastAPI, loaded: LoadedResult, limits: Limits, batcher: Batcher) -> None:
    """Add the route that predicts, with the types of the task."""
    interface = loaded.recipe.task.interface

    async def predict(request: Request, body: BaseModel) -> Any:
        """Return a prediction for each row, in order."""
        found = await unless_left(request, batcher.ask(rows_of(body)))
        return Response(status_code=LEFT) if found is None else {"predictions": found}

    # FastAPI reads the type of the body from the annotation, and the task decides it
    predict.__annotations__["body"] = request_type(interface, limits)
    app.post(
        "/predict",
        response_model=response_type(interface),
        responses={code: {"model": Failure, "description": why} for code, why in FAILURES.items()},
    )(predict)


async def unless_left(request: Request, answer: Awaitable[Any]) -> Any:
    """Return an answer, or None if the client leaves before; its rows then leave the queue."""
    found = asyncio.ensure_future(answer)
    left = asyncio.ensure_future(request.receive())  # after the body, only that the client left
    try:
        await asyncio.wait({found, left}, return_when=asyncio.FIRST_COMPLETED)
        return await found if found.done() else None
    finally:
        found.cancel()
        left.cancel()


def describe(loaded: LoadedResult, limits: Limits) -> Served:
    """Return what is served."""
    recipe, task = loaded.recipe, loaded.recipe.task
    return Served(
        name=recipe.name,
        task=type(task).__name__,
        sha256=loaded.sha256,
        columns=list(task.interface.columns),
        labels=list(loaded.labels),
        thresholds=task.thresholds_of(loaded.labels),
        max_tokens=task.length,
        max_rows=limits.max_rows,
        max_characters=limits.max_characters,
        max_body_bytes=limits.max_body_bytes,
    )


def failure(code: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as JSON."""
    return JSONResponse(Failure(error=message).model_dump(), code, headers=headers)


def add_errors(app: FastAPI) -> None:
    """Let every error be JSON that says what is wrong, and none show a trace."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            place = f"at character {first['loc'][1]}: {first['ctx']['error']}"
            return failure(400, f"the body is not JSON, {place}.")
        kind = request.headers.get("content-type", "none")
        if "json" not in kind:
            return failure(415, f"Content-Type is {kind}; send application/json.")
        return failure(422, messages_of(error.errors()))

    @app.exception_handler(DataError)
    async def unusable(request: Request, error: DataError) -> Response:
        return failure(422, str(error))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return failure(503, f"{error} Try again.", {"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return failure(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        LOG.error("%s %s", request.method, request.url.path, exc_info=error)
        return failure(500, "an unexpected error; the server's log has it.")


class BodyLimit:
    """Refuses a body that is too large, as soon as that is known."""

    def __init__(self, app: Any, *, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, whose body is counted while it is read."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise HTTPException(413, f"the body has more than {self.max_bytes:,} bytes.")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)
