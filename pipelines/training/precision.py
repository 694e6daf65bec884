"""In which precision a GPU multiplies while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState

from pipelines.models.quantization import computing_in
from pipelines.process import bf16_requested, tf32_products


@contextmanager
def precision_of_training(model: Any) -> Iterator[None]:
    """Where a GPU trains in bfloat16, let what autocast does not reach be computed so, too.

    Products that remain in fp32 have their factors rounded to TF32, and quantised layers compute in
    bfloat16. Outside, where the result is scored, and in a run in fp32, all products are in fp32.
    """
    if PartialState().device.type != "cuda" or not bf16_requested():
        yield
        return
    with tf32_products(), computing_in(model, torch.bfloat16):
        yield
