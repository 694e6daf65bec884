"""Who sends a request and what it may do; and its body, read in bounded memory."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from pipelines.hub.local_hub.parsing import http_error, parse_object
from pipelines.hub.local_hub.storage import Repo, Storage

BODY_BYTES = 16 * 1024 * 1024  # of a JSON body, or a line of a commit: a regular file in base64
REPO = "/api/{kind:models|datasets|spaces}/{user}/{name}"
GIT = "/{prefix:(datasets/|spaces/)?}{user}/{name}"


class Access(Storage):
    """Storage with accounts: `tokens` maps each token to its user and role."""

    def __init__(self, folder: Path, *, port: int):
        super().__init__(folder)
        self.port = port
        self.tokens = {self.token: ("local", "write")}

    @property
    def url(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    async def chunks(self, request: web.Request) -> AsyncIterator[bytes]:
        """Yield the body of a request as it comes; the one place that reads it."""
        async for chunk in request.content.iter_chunked(1 << 18):
            yield chunk

    async def lines(self, request: web.Request) -> AsyncIterator[bytes]:
        """Yield the lines of a body. Raise 400 for one that is too long."""
        rest = bytearray()
        async for chunk in self.chunks(request):
            *complete, last = chunk.split(b"\n")
            for part in complete:
                yield bytes(rest + part)
                rest.clear()
            rest += last
            if len(rest) > BODY_BYTES:
                raise http_error(400, f"A line, or the body, is longer than {BODY_BYTES} bytes")
        yield bytes(rest)

    async def body(self, request: web.Request) -> bytes:
        """Return a small body. Raise 400 for one that is too long."""
        content = bytearray()
        async for chunk in self.chunks(request):
            content += chunk
            if len(content) > BODY_BYTES:
                raise http_error(400, f"The body is longer than {BODY_BYTES} bytes")
        return bytes(content)

    async def json(self, request: web.Request) -> dict[str, Any]:
        """Return the JSON object of a body."""
        return parse_object(await self.body(request))

    def user(self, request: web.Request) -> tuple[str, str] | None:
        """Return user and role of the request's token, or None without one."""
        header = request.headers.get("Authorization")
        if header is None:
            return None
        account = self.tokens.get(header.removeprefix("Bearer "))
        if account is None:
            raise http_error(401, "Invalid credentials in Authorization header")
        return account

    def account(self, request: web.Request) -> tuple[str, str]:
        """Return user and role of the request's token. Raise 401 without one."""
        account = self.user(request)
        if account is None:
            raise http_error(401, "Invalid username or password.")
        return account

    def repo(self, request: web.Request, *, write: bool = False) -> Repo:
        """Return the repository of the path, if the user may read, or write, it."""
        prefix = request.match_info.get("prefix", "").rstrip("/")
        kind = request.match_info.get("kind") or prefix or "models"
        user = self.user(request)
        repo_id = "{user}/{name}".format(**request.match_info)
        repo = self.repos.get((kind, repo_id))
        is_owner = user is not None and repo_id.split("/")[0] == user[0]
        if repo is None or (repo.private and not is_owner):
            raise http_error(404 if user else 401, "Repository not found", code="RepoNotFound")
        if write and not (is_owner and user and user[1] == "write"):
            raise http_error(403 if user else 401, f"You have no write access to {repo_id}")
        return repo

    def signature(self, action: str, oid: str) -> str:
        """Return what lets a request without a token read or write one LFS object."""
        return hmac.digest(self.token.encode(), f"{action} {oid}".encode(), "sha256").hex()

    def check_signature(self, request: web.Request, action: str) -> str:
        """Return the object that a signed request names. Raise 403 if it is not signed."""
        oid, signature = request.match_info["oid"], request.query.get("signature", "")
        if not hmac.compare_digest(signature.encode(), self.signature(action, oid).encode()):
            raise http_error(403, "Not signed")
        return oid


HUB = web.AppKey("HUB", Access)
"""The Hub of an application, for the functions that answer requests."""
