"""The HTTP client for the Hub: bounded waits, progress, and no web pages as answers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined, unused-ignore]

from pipelines.errors import Problem, RecipeError

VARIABLE = "GPT2_RECIPES_HUB_TIMEOUT"
TIMEOUT = 45.0  # seconds without progress; with its imports a command ends within 120 s
CONNECT_TIMEOUT = 10.0
STEP = 64 * 1024  # bytes that count as progress


class HubError(Exception):
    """The Hub does not answer, fails or is not a Hub; the message says which."""


class HubSilentError(httpx2.TransportError):
    """No data for a whole time-out; huggingface_hub does not retry errors of this class."""


class Progress:
    """Tracks when data last moved between this process and the Hub; shared by threads."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.num_bytes = 0
        self.watched = 0
        self._unreported = 0

    def touch(self, seconds: float = 0.0) -> None:
        """Record progress now, or `seconds` ahead when the server requests a wait."""
        self.last = max(self.last, time.monotonic() + seconds)

    def move(self, num_bytes: int) -> None:
        """Record bytes sent or received."""
        self.num_bytes += num_bytes
        self._unreported += num_bytes
        if self._unreported >= STEP:
            self._unreported = 0
            self.touch()

    @property
    def silence(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self.last


PROGRESS = Progress()


@contextmanager
def _raise_if_silent(timeout: float) -> Iterator[None]:
    """Turn a time-out of a socket into HubSilentError if no data moved for `timeout` seconds."""
    started = time.monotonic()
    try:
        yield
    except httpx2.TimeoutException as error:
        silence = PROGRESS.silence if PROGRESS.watched else time.monotonic() - started
        if silence >= 0.9 * timeout:  # less than `timeout`: it began after the request was sent
            raise HubSilentError(no_answer_text(timeout)) from error
        raise


class _CountedStream(httpx2.SyncByteStream):
    """The body of a request or response, which reports its bytes as they move."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.stream:
            for start in range(0, len(chunk), STEP):
                part = chunk[start : start + STEP]
                PROGRESS.move(len(part))
                yield part
        PROGRESS.touch()

    def close(self) -> None:
        self.stream.close()

    @property
    def elapsed(self) -> Any:
        """What httpx2 reads from its own streams."""
        return self.stream.elapsed


class _PacedStream(_CountedStream):
    """The body of a response; raises HubSilentError if the server is too slow, not its reader."""

    def __init__(self, stream: Any, timeout: float):
        super().__init__(stream)
        self.timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        chunks = super().__iter__()
        num_bytes, waited = 0, 0.0
        while True:
            started = time.monotonic()
            with _raise_if_silent(self.timeout):
                chunk = next(chunks, None)
            if chunk is None:
                return
            num_bytes += len(chunk)
            waited += time.monotonic() - started
            if num_bytes >= STEP:
                num_bytes, waited = 0, 0.0
            elif waited > self.timeout:
                raise HubSilentError(_too_slow_text(self.timeout))
            yield chunk


class HubClient(httpx2.Client):
    """huggingface_hub's client with bounded waits, which refuses web pages as answers."""

    def __init__(self, timeout: float, **options: Any):
        super().__init__(**options)
        self.max_wait = timeout

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> Any:
        """Send a request with time-outs, even if the caller set none."""
        requested = request.extensions.get("timeout", {})
        limits = {"connect": min(CONNECT_TIMEOUT, self.max_wait)}
        limits |= dict.fromkeys(("read", "write", "pool"), self.max_wait)
        bounded = {name: min(limits[name], requested.get(name) or math.inf) for name in limits}
        request.extensions = {**request.extensions, "timeout": bounded}
        request.stream = _CountedStream(request.stream)
        with _raise_if_silent(self.max_wait):
            response = super().send(request, stream=True, **options)
        PROGRESS.touch(retry_after(response) or 0.0)
        response.stream = _PacedStream(response.stream, self.max_wait)
        try:
            _refuse_web_page(request, response)
            if not stream:
                response.read()
        except BaseException:
            response.close()
            raise
        return response


def _refuse_web_page(request: httpx2.Request, response: httpx2.Response) -> None:
    """Raise HubError for HTML instead of JSON, as from the login page of a network."""
    path = request.url.path
    is_file = "/api/resolve-cache/" in path
    is_api = ("/api/" in path or "/info/lfs/" in path) and not is_file
    if is_api and response.is_success and "html" in response.headers.get("content-type", ""):
        raise HubError(
            f"{request.url.host} answered {request.method} {path} with a web page, not as the Hub "
            "does. Check HF_ENDPOINT, and whether a proxy or a login page is in between."
        )


def no_answer_text(seconds: float) -> str:
    """Return the message for a Hub that does not answer."""
    return (
        f"{constants.ENDPOINT} has not answered for {seconds:.0f} s. "
        f"{VARIABLE} sets how long to wait."
    )


def _too_slow_text(seconds: float) -> str:
    """Return the message for a Hub that answers too slowly."""
    return (
        f"{constants.ENDPOINT} moved less than {STEP // 1024} KiB in {seconds:.0f} s. "
        f"{VARIABLE} sets how long to wait."
    )


def hub_timeout() -> float:
    """Return the seconds without progress after which a request is abandoned.

    Raise RecipeError for an environment variable that is not a positive number.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else TIMEOUT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RecipeError([Problem(VARIABLE, f"{text!r} is not a positive number of seconds.")])
    return seconds


def bound_requests(timeout: float) -> None:
    """Bound the waits of all requests of huggingface_hub in this process, Xet's included."""
    current = get_session()
    if isinstance(current, HubClient) and current.max_wait == timeout:
        return
    hooks = current.event_hooks

    def client() -> HubClient:
        return HubClient(timeout, event_hooks=hooks, follow_redirects=True)

    set_client_factory(client)
    seconds = f"{max(1, round(timeout))}s"
    for name in ("CONNECT_TIMEOUT", "READ_TIMEOUT", "RETRY_MAX_DURATION"):
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", seconds)  # the Rust client reads them


def retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds that a server requests to wait, or None.

    It sends a number, a date, or the reset of a rate limit.
    """
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
        return max(0.0, (zoned - datetime.now(UTC)).total_seconds())
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    return None
