"""torch.compile, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from pipelines.errors import Problem, RecipeError


def compile_blocks(
    base: Any, *, one_length: bool, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile each transformer block of a model where it is.

    The blocks share their code, which is compiled once for all of them. Names in checkpoints stay
    as they are. What is around the blocks is not compiled: masks, which transformers makes for
    compiled models even where none is needed, packing, the head and its chunked loss.

    With `one_length` the code is compiled for the first batch's shape, and again, for any shape,
    where another follows; else for any shape at once. Training and evaluation have code of their
    own, as has a first block whose input needs no gradient, with an adapter.

    Raise RecipeError for a model that is not made of transformers' blocks.
    """
    blocks = [each for each in base.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not blocks:
        text = f"{base.config.model_type} has no blocks to compile. Leave it out."
        raise RecipeError([Problem("train.torch_compile", text)])
    for block in blocks:
        block.compile(backend=backend, dynamic=None if one_length else True)


@contextmanager
def not_compiled() -> Iterator[None]:
    """Compute without the compiler inside, also what is compiled elsewhere.

    Generation would compile the blocks again for each layer of its cache.
    """
    with torch.compiler.set_stance("force_eager"):
        yield
