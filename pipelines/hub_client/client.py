"""Requests to the Hub with retries and bounded waits, and the reason of their failures.

huggingface_hub sets no time-out for most requests, and its time-outs do not bound a server that
sends a byte now and then. Three limits bound them here, all derived from one number of seconds,
`GPT2_RECIPES_HUB_TIMEOUT`:

- a socket waits that long for data, and at most 10 s for a connection;
- a call is abandoned when less than `STEP` bytes move and no request finishes in that time;
- a command gives up after `COMMAND` times as long; time in which data moves does not count.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from pipelines.abandonable import call_or_abandon
from pipelines.hub_client.transport import (
    PROGRESS,
    STEP,
    HubError,
    HubSilentError,
    bound_requests,
    hub_timeout,
    no_answer_text,
    retry_after,
)
from pipelines.log import LOG, scrubbed

COMMAND = 10  # time-outs that a command may take, without the time in which data moves
XET_RATE = 100_000  # bytes/s granted to uploads whose progress cannot be observed
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts, unless the Hub asks for more
PERMANENT = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)  # no other attempt helps
RETRIED = {408, 412, 429, 500, 502, 503, 504, *range(520, 525)}  # 412: another commit came first
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError)
LONGEST_REASON = 400  # characters of a server's message that are shown
JITTER = random.Random()  # not the global one, which a recipe seeds
Answer = TypeVar("Answer")


def _report_retry(why: str, seconds: float) -> None:
    """Print why the command waits to run.log and stderr; stdout may carry predictions."""
    line = scrubbed(f"{constants.ENDPOINT}: {why}; trying again in {seconds:,.1f} s")
    LOG.info(line)
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


class Hub:
    """The Hub for one command, with bounded waits. `api` is huggingface_hub's.

    `timeout` is in seconds, in place of the environment's. Without `retry` a call is made once.
    """

    def __init__(self, *, timeout: float | None = None, retry: bool = True) -> None:
        self.timeout = hub_timeout() if timeout is None else timeout
        self.retry = retry
        bound_requests(self.timeout)
        self.api = HfApi()
        self._silent: HubSilentError | None = None
        self._started = time.monotonic()
        self._bytes_before = PROGRESS.num_bytes

    def ask(self, call: Callable[[HfApi], Answer], *, num_bytes: int = 0) -> Answer:
        """Return what a call of the API returns. Raise HubError for a malformed answer."""

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
        """Return what `call` returns, with retries when the Hub or the connection fails.

        `num_bytes` is the size of its uploads through Xet, whose progress cannot be observed;
        `into` is a folder that grows when it, or another process that it waits for, downloads. A
        call that also computes, such as preparing a dataset, is not `watched`: only its requests
        are bounded. Raise HubError when no attempt succeeds; other errors are raised as they are.
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
                if not self.retry or time.monotonic() + wait > last:
                    text = f"{constants.ENDPOINT} does not answer: {reason(error)}"
                    if asked:
                        text += f", and asks to wait for {asked:,.0f} s"
                    raise HubError(text) from error
                if pause == FIRST_PAUSE or asked:
                    _report_retry(reason(error), wait)
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
            try:  # a commit never changes, so the cache has the right files
                return Path(snapshot_download(name, **options, local_files_only=True))
            except LocalEntryNotFoundError:
                pass
            raise

    @property
    def deadline(self) -> float:
        """Time, by the monotonic clock, at which this command gives up."""
        moved = PROGRESS.num_bytes - self._bytes_before
        return self._started + COMMAND * self.timeout + moved * self.timeout / STEP

    def _watch(self, call: Callable[[], Answer], granted: float, into: Path | None) -> Answer:
        """Run `call`; abandon it when nothing moves, or at the deadline."""
        size = folder_size(into)
        if into is not None:
            granted += 2 * self.timeout  # huggingface_hub writes 10 MB at once

        def reason_to_abandon() -> HubSilentError | None:
            nonlocal size
            grown, size = folder_size(into) - size, folder_size(into)
            PROGRESS.move(max(0, grown))
            late = time.monotonic() > self.deadline + granted
            # A second later than the request's own time-out, whose error says more.
            silent = PROGRESS.silence > self.timeout + granted + 1
            return HubSilentError(no_answer_text(self.timeout)) if late or silent else None

        PROGRESS.watched += 1
        PROGRESS.last = time.monotonic()
        try:
            return call_or_abandon(call, reason_to_abandon)
        finally:
            PROGRESS.watched -= 1


def cache_of(name: str) -> Path:
    """Return huggingface_hub's cache folder of a model's files, unfinished downloads included."""
    folder = repo_folder_name(repo_id=name, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs"


def folder_size(folder: Path | None) -> int:
    """Return the total size of the files in a folder, in bytes; 0 if it does not exist."""
    if folder is None or not folder.is_dir():
        return 0
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # renamed when it is whole
            size += file.stat().st_size
    return size


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _failure(error: BaseException) -> httpx2.HTTPError | None:
    """Return the failure of the Hub or the connection behind an error, if a retry may help."""
    for each in chain(error):
        if isinstance(each, HubError):
            return None
        if isinstance(each, HfHubHTTPError):
            return each if status_of(each) in RETRIED else None
        if isinstance(each, httpx2.TransportError):
            return each
    return None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or None."""
    for each in chain(error):
        if isinstance(each, HfHubHTTPError):
            return each.response.status_code
    return None


def reason(error: BaseException) -> str:
    """Return the reason of an error in one line: the Hub's own message if it sent one."""
    for each in chain(error):
        if isinstance(each, HubError):
            return str(each)
        if isinstance(each, HfHubHTTPError):
            return _reason_of_status(each)
        if isinstance(each, json.JSONDecodeError):
            return "the answer is not JSON"
    return _one_line(str(error)) or type(error).__name__


def _reason_of_status(error: HfHubHTTPError) -> str:
    """Return the server's message with the status, or the status and the request."""
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
