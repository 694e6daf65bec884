"""Check what clients send, and answer with the errors that the Hub has."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from aiohttp import web

OID = re.compile(r"[0-9a-f]{64}")
REQUIRED: Any = object()  # a default: the field must be there
STATUSES: dict[int, type[web.HTTPError]] = {
    400: web.HTTPBadRequest,
    401: web.HTTPUnauthorized,
    403: web.HTTPForbidden,
    404: web.HTTPNotFound,
    409: web.HTTPConflict,
    412: web.HTTPPreconditionFailed,
    507: web.HTTPInsufficientStorage,
}


def http_error(status: int, message: str, *, code: str = "", **payload: Any) -> web.HTTPException:
    """Return an error in the form of the Hub's own."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in message)[:1000]
    headers = {"X-Error-Message": shown} | ({"X-Error-Code": code} if code else {})
    text = json.dumps({"error": message} | payload)
    return STATUSES[status](text=text, headers=headers, content_type="application/json")


def parse_object(text: bytes) -> dict[str, Any]:
    """Return a JSON object. Raise 400 for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise http_error(400, f"The body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise http_error(400, "The body is not a JSON object")
    return value


def get_field(body: Any, name: str, kind: type, default: Any = REQUIRED) -> Any:
    """Return a field of a JSON object, or `default` for null. Raise 400 for another type."""
    value = body.get(name) if isinstance(body, dict) else None
    if value is None and default is not REQUIRED:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise http_error(400, f'"{name}" is missing or not of type {kind.__name__}')
    return value


def decode_base64(text: str) -> bytes:
    """Return the bytes of a base64 text. Raise 400 for another text."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise http_error(400, f"Invalid base64: {error}") from None


def check_path(path: str) -> str:
    """Return the path of a file, or the name of a branch or tag. Raise 400 for an unsafe one."""
    parts = path.split("/")
    unsafe = any(p in ("", ".", "..") or p.casefold() == ".git" for p in parts)
    if unsafe or len(path) > 1024 or "\\" in path or not path.isprintable():
        raise http_error(400, f"Invalid path {path!r}")
    return path


def check_oid(oid: str) -> str:
    """Return an LFS id, which names a file of the server. Raise 400 unless it is a SHA-256."""
    if not OID.fullmatch(oid):
        raise http_error(400, f"Invalid LFS oid {oid!r}: it must be a SHA-256 in hexadecimal")
    return oid
