"""Requests to the Hub that end: time-outs, retries, and the reason when the Hub does not help.

huggingface_hub sets no time-out for most requests, and its time-outs never bound a server that
sends a byte now and then. Three limits bound them here, all derived from one number of seconds,
`GPT2_RECIPES_HUB_TIMEOUT`:

- a socket waits that long for data, and at most 10 s for a connection;
- a call is abandoned when less than `STEP` bytes move and no request finishes in that time;
- a command gives up after `COMMAND` times as long, not counting data that does move.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    is_offline_mode,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import parse_ratelimit_headers

from pipelines.abandonable import call_or_abandon
from pipelines.errors import Problem, RecipeError
from pipelines.log import LOG, scrubbed
from pipelines.recipe import Model

VARIABLE = "GPT2_RECIPES_HUB_TIMEOUT"
TIMEOUT = 45.0  # seconds without progress; with its imports a command ends within 120 s
CONNECT_TIMEOUT = 10.0
COMMAND = 10  # a command may take this many time-outs, data that moves not counted
STEP = 64 * 1024  # bytes that count as progress
XET_RATE = 100_000  # bytes/s granted to uploads whose progress cannot be observed
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts, unless the Hub asks for more
PERMANENT = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)  # no other attempt helps
RETRIED = {408, 412, 429, 500, 502, 503, 504, *range(520, 525)}  # 412: another commit came first
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError)
LONGEST_REASON = 400  # characters of a server's message that are shown
SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model")  # of a checkpoint: config and tokenizer
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
JITTER = random.Random()  # not the global one, which a recipe seeds
Answer = TypeVar("Answer")


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


def _tell_retry(why: str, seconds: float) -> None:
    """Tell why the command waits, in run.log and on stderr: stdout may hold predictions."""
    line = scrubbed(f"{constants.ENDPOINT}: {why}; trying again in {seconds:,.1f} s")
    LOG.info(line)
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


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


class Hub:
    """The Hub for one command: every call is retried, and ends. `api` is huggingface_hub's."""

    def __init__(self) -> None:
        bound_requests()
        self.api = HfApi()
        self.timeout = hub_timeout()
        self._silent: HubSilentError | None = None
        self._started = time.monotonic()
        self._bytes_before = PROGRESS.num_bytes

    def ask(self, call: Callable[[HfApi], Answer], *, num_bytes: int = 0) -> Answer:
        """Return what a call of the API returns. Raise HubError for an answer that is malformed."""

        def checked() -> Answer:
            try:
                return call(self.api)
            except HFValidationError:
                raise
            except MALFORMED as error:
                text = f"{constants.ENDPOINT} does not answer as the Hub does: "
                raise HubError(text + f"{type(error).__name__}: {reason(error)}") from error

        return self.fetch(checked, num_bytes=num_bytes)

    def fetch(
        self,
        call: Callable[[], Answer],
        *,
        num_bytes: int = 0,
        into: Path | None = None,
        watched: bool = True,
    ) -> Answer:
        """Return what `call` returns, after further attempts when the Hub or the line failed.

        `num_bytes` is what it uploads through Xet, whose progress cannot be observed; `into` is a
        folder that grows when it, or another process that it waits for, downloads. A call
        that also computes, such as preparing a dataset, is not `watched`: only its requests are
        bounded. Raise HubError when attempts do not help; other errors are raised as they are.
        """
        give_up = time.monotonic() + self.timeout
        pause = FIRST_PAUSE
        if self._silent:  # a command does not wait twice
            raise HubError(str(self._silent))
        while True:
            try:
                return self._watch(call, num_bytes / XET_RATE, into) if watched else call()
            except Exception as error:
                failure = _failure(error)
                if failure is None:
                    raise
                if isinstance(failure, HubSilentError):
                    self._silent = failure
                    raise HubError(str(failure)) from error
                if isinstance(failure, PERMANENT):
                    raise HubError(f"{constants.ENDPOINT}: {reason(error)}") from error
                asked = None
                if isinstance(failure, HfHubHTTPError):
                    asked = retry_after(failure.response)
                wait = asked if asked is not None else pause * JITTER.uniform(0.5, 1.5)
                last = self.deadline if asked else give_up
                if time.monotonic() + wait > last:
                    text = f"{constants.ENDPOINT} does not answer: {reason(error)}"
                    if asked:
                        text += f", and asks to wait for {asked:,.0f} s"
                    raise HubError(text) from error
                if pause == FIRST_PAUSE or asked:
                    _tell_retry(reason(error), wait)
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def download(
        self, name: str, commit: str | None, files: list[str], *, ignored: str | None = None
    ) -> Path:
        """Return the folder of the cache with a repository's files that match one of `files`."""
        options: dict[str, Any] = {
            "revision": commit,
            "allow_patterns": files,
            "ignore_patterns": ignored,
        }
        try:
            return Path(self.fetch(lambda: snapshot_download(name, **options), into=cache_of(name)))
        except HubError:
            if commit is None:
                raise
            try:  # a commit does not change: what is in the cache is right
                return Path(snapshot_download(name, **options, local_files_only=True))
            except LocalEntryNotFoundError:
                pass
            raise

    @property
    def deadline(self) -> float:
        """When this command gives up; data that moved does not count."""
        moved = PROGRESS.num_bytes - self._bytes_before
        return self._started + COMMAND * self.timeout + moved * self.timeout / STEP

    def _watch(self, call: Callable[[], Answer], granted: float, into: Path | None) -> Answer:
        """Run `call`; abandon it when nothing moves, or at the deadline."""
        size = folder_size(into)
        if into is not None:
            granted += 2 * self.timeout  # huggingface_hub writes 10 MB at once

        def hopeless() -> HubSilentError | None:
            nonlocal size
            grown, size = folder_size(into) - size, folder_size(into)
            PROGRESS.move(max(0, grown))
            late = time.monotonic() > self.deadline + granted
            # A second later than the request's own time-out, whose error says more.
            silent = PROGRESS.silence > self.timeout + granted + 1
            return HubSilentError(_no_answer(self.timeout)) if late or silent else None

        PROGRESS.watched += 1
        PROGRESS.last = time.monotonic()
        try:
            return call_or_abandon(call, hopeless)
        finally:
            PROGRESS.watched -= 1


def is_path(name: str) -> bool:
    """Tell an explicit local path from a Hub id, which starts with neither "." nor "/"."""
    return name.startswith((".", "/"))


def fetch_checkpoint(model: Model, *, weights: bool = True) -> Path:
    """Return the folder of a checkpoint, with what transformers reads of it in the cache.

    Its config and its tokenizer are downloaded, and its safetensors unless no `weights` are
    needed. Raise HubError when the Hub does not help, and OSError for what is not there.
    """
    name = model.name_or_path
    if Path(name).is_dir() or is_path(name) or is_offline_mode():
        return Path(name)
    files = [*SMALL_FILES, *(WEIGHTS if weights else ())]
    return Hub().download(name, model.revision, files, ignored="*/*")


def weight_files(names: Iterable[str]) -> list[str]:
    """Return the safetensors of a checkpoint that transformers reads, of all its files."""
    return sorted(n for n in names if any(fnmatch(n, pattern) for pattern in WEIGHTS))


def cache_of(name: str) -> Path:
    """Return the folder where huggingface_hub keeps the files of a model, unfinished ones too."""
    folder = repo_folder_name(repo_id=name, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs"


def folder_size(folder: Path | None) -> int:
    """Return the bytes of the files in a folder; 0 if it is not there."""
    if folder is None or not folder.is_dir():
        return 0
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # renamed when it is whole
            size += file.stat().st_size
    return size


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _failure(error: BaseException) -> httpx2.HTTPError | None:
    """Return the failure of the Hub or of the line behind an error, if another attempt may help."""
    for each in chain(error):
        if isinstance(each, HubError):
            return None
        if isinstance(each, HfHubHTTPError):
            return each if status_of(each) in RETRIED else None
        if isinstance(each, httpx2.TransportError):
            return each
    return None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error."""
    for each in chain(error):
        if isinstance(each, HfHubHTTPError):
            return each.response.status_code
    return None


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


def reason(error: BaseException) -> str:
    """Return one line that says why: the Hub's own message if it sent one."""
    for each in chain(error):
        if isinstance(each, HubError):
            return str(each)
        if isinstance(each, HfHubHTTPError):
            return _reason_of_status(each)
        if isinstance(each, json.JSONDecodeError):
            return "the answer is not JSON"
    return _one_line(str(error)) or type(error).__name__


def _reason_of_status(error: HfHubHTTPError) -> str:
    """Return the server's message with the status, or what was asked and the status alone."""
    status = error.response.status_code
    headers = error.response.headers
    message = _one_line(error.server_message or headers.get("X-Error-Message") or "")
    if message:
        return f"{message} (HTTP {status})"
    known = {each.value: each.phrase for each in HTTPStatus}
    request = error.response.request
    return f"HTTP {status} {known.get(status, '')}".strip() + (
        f" to {request.method} {request.url.path}" if request is not None else ""
    )


def _one_line(text: str) -> str:
    """Return a text without line breaks and control characters, cut to a readable length."""
    text = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
