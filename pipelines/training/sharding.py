"""The whole weights of a model whose parameters are sharded over the processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from pipelines.training.fsdp_upstream import replace_policy, reshards_after_forward
from pipelines.training.upstream import without_tied


@contextmanager
def unsharded(model: torch.nn.Module) -> Iterator[None]:
    """Hold the whole of every parameter on every process inside, so that one can compute alone.

    Every process must enter; nothing happens to a model that is not sharded.
    """
    sharded = sharded_modules(model)
    before = [reshards_after_forward(module) for module in sharded]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module, reshards in zip(sharded, before, strict=True):
            module.reshard()
            module.set_reshard_after_forward(reshards, recurse=False)


@contextmanager
def in_own_type(model: torch.nn.Module) -> Iterator[None]:
    """Compute in the type of the sharded parameters inside, where training casts them to bfloat16.

    Nothing happens to a model that is not sharded.
    """
    sharded = sharded_modules(model)
    before = [(each, replace_policy(each, MixedPrecisionPolicy())) for each in sharded]
    try:
        yield
    finally:
        for module, policy in reversed(before):  # some modules share one policy
            replace_policy(module, policy)


def sharded_modules(model: torch.nn.Module) -> list[FSDPModule]:
    """Return the modules that FSDP2 has sharded."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gathered_state(model: Any, *, only_trained: bool) -> dict[str, torch.Tensor]:
    """Return the whole state of a sharded model, on the CPU, on rank 0; {} on the others.

    Every process must call it. Tied weights are in it once.
    """
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=only_trained
    )
    return without_tied(model, get_model_state_dict(model, options=options))
