"""A client for the Hub whose requests end: bounded waits, progress, refusals."""

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
from huggingface_hub.utils import parse_ratelimit_headers

from pipelines.errors import Problem, RecipeError

VARIABLE = "GPT2_RECIPES_HUB_TIMEOUT"
TIMEOUT = 45.0  # seconds without progress; with its imports a command ends within 120 s
CONNECT_TIMEOUT = 10.0
STEP = 64 * 1024  # bytes that count as progress


class HubError(Exception):
    """The Hub is silent, broken or not a Hub; the message says which."""


class HubSilentError(httpx2.TransportError):
    """Nothing has arrived for a whole time-out; huggingface_hub does not retry this class."""


class Progress:
    """When data last moved between this process and the Hub. Threads share it."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.num_bytes = 0
        self.watched = 0
        self._unreported = 0

    def touch(self, seconds: float = 0.0) -> None:
        """Note progress; `seconds` more are granted when the server asks to wait."""
        self.last = max(self.last, time.monotonic() + seconds)

    def move(self, num_bytes: int) -> None:
        """Note bytes sent or received."""
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
def _silence_told(timeout: float) -> Iterator[None]:
    """Raise HubSilentError for a time-out of a socket that used up the patience of a call."""
    started = time.monotonic()
    try:
        yield
    except httpx2.TimeoutException as error:
        silence = PROGRESS.silence if PROGRESS.watched else time.monotonic() - started
        if silence >= 0.9 * timeout:  # it began when the request was on its way
            raise HubSilentError(_no_answer(timeout)) from error
        raise


class _Counted(httpx2.SyncByteStream):
    """A body, of a request or a response, that reports its bytes as they move."""

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


class _Paced(_Counted):
    """The body of a response, which ends when its bytes hardly move. Its reader may be slow."""

    def __init__(self, stream: Any, timeout: float):
        super().__init__(stream)
        self.timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        chunks = super().__iter__()
        num_bytes, waited = 0, 0.0
        while True:
            started = time.monotonic()
            with _silence_told(self.timeout):
                chunk = next(chunks, None)
            if chunk is None:
                return
            num_bytes += len(chunk)
            waited += time.monotonic() - started
            if num_bytes >= STEP:
                num_bytes, waited = 0, 0.0
            elif waited > self.timeout:
                raise HubSilentError(_too_slow(self.timeout))
            yield chunk


class HubClient(httpx2.Client):
    """huggingface_hub's client with bounded waits; refuses web pages in place of answers."""

    def __init__(self, timeout: float, **options: Any):
        super().__init__(**options)
        self.longest = timeout

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> Any:
        """Send a request with time-outs, also where the caller asked for none."""
        wanted = request.extensions.get("timeout", {})
        limits = {"connect": min(CONNECT_TIMEOUT, self.longest)}
        limits |= dict.fromkeys(("read", "write", "pool"), self.longest)
        bounded = {name: min(limits[name], wanted.get(name) or math.inf) for name in limits}
        request.extensions = {**request.extensions, "timeout": bounded}
        request.stream = _Counted(request.stream)
        with _silence_told(self.longest):
            response = super().send(request, stream=True, **options)
        PROGRESS.touch(retry_after(response) or 0.0)
        response.stream = _Paced(response.stream, self.longest)
        try:
            _refuse_web_page(request, response)
            if not stream:
                response.read()
        except BaseException:
            response.close()
            raise
        return response


def _refuse_web_page(request: httpx2.Request, response: httpx2.Response) -> None:
    """Raise HubError for HTML where the Hub answers JSON, as a login page of a network does."""
    path = request.url.path
    is_file = "/api/resolve-cache/" in path
    is_api = ("/api/" in path or "/info/lfs/" in path) and not is_file
    if is_api and response.is_success and "html" in response.headers.get("content-type", ""):
        raise HubError(
            f"{request.url.host} answered {request.method} {path} with a web page, not as the Hub "
            "does. Check HF_ENDPOINT, and whether a proxy or a login page is in between."
        )


def _no_answer(seconds: float) -> str:
    return (
        f"{constants.ENDPOINT} has not answered for {seconds:.0f} s. "
        f"{VARIABLE} sets how long to wait."
    )


def _too_slow(seconds: float) -> str:
    return (
        f"{constants.ENDPOINT} moved less than {STEP // 1024} KiB in {seconds:.0f} s. "
        f"{VARIABLE} sets how long to wait."
    )


def hub_timeout() -> float:
    """Return the seconds without progress after which the Hub is given up."""
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else TIMEOUT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RecipeError([Problem(VARIABLE, f"{text!r} is not a positive number of seconds.")])
    return seconds


def bound_requests() -> None:
    """Make every request of huggingface_hub in this process end; settings of Xet included."""
    timeout = hub_timeout()
    current = get_session()
    if isinstance(current, HubClient) and current.longest == timeout:
        return
    hooks = current.event_hooks

    def client() -> HubClient:
        return HubClient(timeout, event_hooks=hooks, follow_redirects=True)

    set_client_factory(client)
    seconds = f"{max(1, round(timeout))}s"
    for name in ("CONNECT_TIMEOUT", "READ_TIMEOUT", "RETRY_MAX_DURATION"):
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", seconds)  # the Rust client reads them


def retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds that a server asks to wait: a number, a date, or a rate limit's reset."""
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
