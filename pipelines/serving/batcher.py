"""Requests that wait share a batch; one thread runs the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipelines.serving.limits import Limits

Rows = list[dict[str, str]]
Predictions = list[dict[str, Any]]
Answer = Callable[[Sequence[Rows]], Sequence[Predictions | Exception]]
"""Returns the predictions of each request of a batch, or why it cannot be answered."""


class Busy(Exception):  # noqa: N818 - nothing went wrong
    """More rows wait than may."""


@dataclass(frozen=True)
class Waiting:
    """A request that waits for its predictions."""

    rows: Rows
    predictions: asyncio.Future[Predictions]


class Batcher:
    """Answers requests in batches, in the order in which they came."""

    def __init__(self, answer: Answer, limits: Limits):
        self.answer = answer
        self.limits = limits
        self.waiting: deque[Waiting] = deque()
        self.arrived = asyncio.Event()

    async def ask(self, rows: Rows) -> Predictions:
        """Return the predictions of a request.

        Raise Busy if too many rows wait, and what the answer has in place of predictions. A caller
        that is cancelled before its batch begins leaves the queue.
        """
        num_waiting = sum(len(each.rows) for each in self.waiting)
        if num_waiting and num_waiting + len(rows) > self.limits.max_waiting_rows:
            raise Busy(f"{num_waiting} rows wait, of at most {self.limits.max_waiting_rows}.")
        request = Waiting(rows, asyncio.get_running_loop().create_future())
        self.waiting.append(request)
        self.arrived.set()
        return await request.predictions

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests inside, in a thread of its own."""
        with ThreadPoolExecutor(1, thread_name_prefix="model") as thread:
            task = asyncio.create_task(self.answer_all(thread))
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def answer_all(self, thread: ThreadPoolExecutor) -> None:
        """Answer batch after batch, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self.next_batch()
            requests = [each.rows for each in batch]
            try:
                answers = await loop.run_in_executor(thread, self.answer, requests)
            except Exception as error:
                answers = [error] * len(batch)
            for each, answer in zip(batch, answers, strict=True):
                if each.predictions.done():  # the client has left
                    continue
                if isinstance(answer, Exception):
                    each.predictions.set_exception(answer)
                else:
                    each.predictions.set_result(answer)

    async def next_batch(self) -> list[Waiting]:
        """Wait for a request, and return it with those that share its batch."""
        batch: list[Waiting] = []
        num_rows = 0
        deadline: float | None = None  # of the first one's wait for others
        while True:
            while self.waiting:
                if batch and num_rows + len(self.waiting[0].rows) > self.limits.batch_size:
                    return batch
                request = self.waiting.popleft()
                if not request.predictions.done():
                    batch.append(request)
                    num_rows += len(request.rows)
            self.arrived.clear()
            if batch and deadline is None:
                loop = asyncio.get_running_loop()
                deadline = loop.time() + self.limits.max_wait_ms / 1000
            if batch and (num_rows >= self.limits.batch_size or not self.limits.max_wait_ms):
                return batch
            try:
                async with asyncio.timeout_at(deadline):
                    await self.arrived.wait()
            except TimeoutError:
                return batch
