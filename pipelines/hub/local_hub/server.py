"""Serve a folder over HTTP, from a thread or until a signal."""

from __future__ import annotations

import asyncio
import errno
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from pipelines.errors import Problem, RecipeError
from pipelines.hub.local_hub import reading, writing
from pipelines.hub.local_hub.access import HUB, Access
from pipelines.hub.local_hub.parsing import http_error

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LocalHub(Access):
    """The server. As a context manager it serves from a thread; `url` is its address."""

    def __init__(self, folder: Path, *, port: int = 0):
        """Open a folder. Raise RecipeError if another Hub serves it, or it cannot be written."""
        super().__init__(folder, port=port)

    async def start(self) -> None:
        """Begin to serve. Raise RecipeError for a port that cannot be used."""
        app = web.Application(middlewares=[self.guard])
        app[HUB] = self
        app.add_routes([*reading.routes, *writing.routes])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self.runner.setup()
        try:
            await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        except (OSError, OverflowError) as error:
            await self.close()
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            why = "is taken" if taken else f"cannot be used ({error})"
            text = f"{self.port} {why}. Give another, or 0 for a free one."
            raise RecipeError([Problem("port", text)]) from None
        self.port = self.runner.addresses[0][1]

    async def close(self) -> None:
        """Stop serving, and leave the folder to others."""
        await self.runner.cleanup()
        self.lock.close()

    def __enter__(self) -> LocalHub:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.start())
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.run_until_complete(self.close())
        self.loop.close()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a page of a browser whose host was rebound to this machine; complete errors."""
        names = ("127.0.0.1", "localhost", "[::1]")
        try:
            if request.host not in {f"{name}:{self.port}" for name in names}:
                raise http_error(403, f"This Hub is {self.url}, not {request.host}")
            return await handler(request)
        except web.HTTPException as error:  # also aiohttp's own, for unknown routes
            error.headers.setdefault("X-Error-Message", error.reason)
            raise
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            message = f"The Hub's folder cannot be used: {error.strerror}"
            raise http_error(507, message) from None


def main(folder: Path, port: int) -> None:
    """Serve until SIGINT or SIGTERM; port 0 takes a free one."""

    async def serve() -> None:
        hub, stop = LocalHub(folder, port=port), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await hub.start()
        print(f"A Hub for trying, of the user 'local', with its repositories in {folder}. Use it:")
        exports = f"HF_ENDPOINT={hub.url} HF_TOKEN={hub.token} HF_HUB_DISABLE_XET=1"
        print(f"    export {exports}", flush=True)
        await stop.wait()
        await hub.close()

    asyncio.run(serve())
