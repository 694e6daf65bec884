"""The local Hub for tests: it records requests, and faults happen as scripted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from pipelines.hub import local_hub


@dataclass
class Fault:
    """What happens to the next `times` requests that match, after `skip` of them.

    `action` is an HTTP status; "reset", the connection is closed before the request is carried
    out; or "cut", it is carried out and half of the answer arrives.
    """

    action: int | str
    method: str = ".*"
    path: str = ".*"
    times: int = 1
    skip: int = 0

    def takes(self, request: web.Request) -> bool:
        """Tell whether this request is one of them, and count it."""
        hit = re.fullmatch(self.method, request.method) and re.search(self.path, request.path)
        if not hit or self.times <= 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Seen:
    """A request that came in."""

    method: str
    path: str
    body: bytes = b""


class LocalHub(local_hub.LocalHub):
    """A Hub with scripted faults that records its requests."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []

    async def chunks(self, request):
        async for chunk in super().chunks(request):
            request["seen"].body += chunk
            yield chunk

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        request["seen"] = Seen(request.method, request.path_qs)
        self.seen.append(request["seen"])
        fault = next((fault for fault in self.faults if fault.takes(request)), None)
        if fault is None:
            return await super().guard(request, handler)
        if isinstance(fault.action, int):
            async for _ in self.chunks(request):
                pass
            headers = {"Retry-After": "0"} if fault.action == 429 else {}
            return web.json_response({"error": "scripted"}, status=fault.action, headers=headers)
        if fault.action == "cut":
            answer = await super().guard(request, handler)
            body = answer.body if isinstance(answer, web.Response) else b""
            cut = web.StreamResponse(status=answer.status, headers=answer.headers)
            cut.content_length = max(len(body or b""), 2)
            await cut.prepare(request)
            await cut.write((body or b"")[: len(body or b"") // 2])
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
