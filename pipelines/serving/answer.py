"""The predictions of requests that share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.data.rows import Examples
from pipelines.errors import DataError
from pipelines.hub.load import LoadedResult
from pipelines.inference.predict import encode, predict_encoded
from pipelines.process import quiet_libraries
from pipelines.tasks.base import Features

Answers = list[list[dict[str, Any]] | Exception]


@quiet_libraries()
def answer_requests(
    loaded: LoadedResult, requests: Sequence[list[dict[str, str]]], *, batch_size: int
) -> Answers:
    """Return the predictions of each request, or why it cannot be answered.

    A request's rows that cannot be used are no fault of the others in its batch: if the model
    raises for the batch, it reads each request alone.
    """
    answers: dict[int, list[dict[str, Any]] | Exception] = {}
    encoded: dict[int, Features] = {}
    for number, rows in enumerate(requests):
        try:
            encoded[number] = encode(loaded, Examples(list(rows), "request"))
        except DataError as error:
            answers[number] = error
    answers |= zip(encoded, answer_encoded(loaded, [*encoded.values()], batch_size), strict=True)
    return [answers[number] for number in range(len(requests))]


def answer_encoded(loaded: LoadedResult, parts: list[Features], batch_size: int) -> Answers:
    """Return the predictions of each part, or the error that it raises alone."""
    if not parts:
        return []
    try:
        return [*predict_encoded(loaded, parts, batch_size=batch_size)]
    except Exception as error:
        if len(parts) == 1:
            return [error]
    return [each for part in parts for each in answer_encoded(loaded, [part], batch_size)]
