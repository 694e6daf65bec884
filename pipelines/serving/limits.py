"""What a request may hold, and how requests share a batch. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests and of the batches that they share."""

    batch_size: Annotated[int, Ge(1)] = 32
    """Most rows of waiting requests that share a batch; 1 answers each request by itself."""
    max_wait_ms: Annotated[float, Ge(0)] = 0.0
    """Milliseconds that a request waits for others to share its batch. While a batch is computed,
    requests wait anyway."""
    max_rows: Annotated[int, Ge(1)] = 128
    """Most rows of a request."""
    max_characters: Annotated[int, Ge(1)] = 20_000
    """Most characters of a text."""
    max_body_bytes: Annotated[int, Ge(1)] = 1_000_000
    """Most bytes of a request's body."""
    max_waiting_rows: Annotated[int, Ge(1)] = 4096
    """Most rows of waiting requests; further requests are told to come again."""
