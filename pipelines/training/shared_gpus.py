"""Refuse ranks that would share a GPU: NCCL ends them with a message about its own terms."""

from __future__ import annotations

import os
from collections import defaultdict

import torch

from pipelines.errors import Problem, RecipeError
from pipelines.training.launcher import launcher_request
from pipelines.training.ranks import Ranks


def own_gpu() -> str | None:
    """Return the id of the GPU that Accelerate gives this rank; None on the CPU.

    Its number among the visible GPUs says nothing: each rank of a job may see a single one.
    """
    if launcher_request().use_cpu or not torch.cuda.is_available():
        return None
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return str(torch.cuda.get_device_properties(index).uuid)


def refuse_shared_gpus(ranks: Ranks, gpu: str | None) -> None:
    """Raise RecipeError on every rank where two have the same `gpu`; every rank must call it."""
    users: defaultdict[str, list[int]] = defaultdict(list)
    for rank, notes in enumerate(ranks.exchange({"gpu": gpu})):
        if notes["gpu"] is not None:
            users[notes["gpu"]].append(rank)
    problems = [
        Problem(
            "accelerate launch",
            f"ranks {', '.join(map(str, sharing))} would share the GPU {shared}. Start one process "
            "a GPU: lower --num_processes, or show each rank a GPU of its own by "
            "CUDA_VISIBLE_DEVICES.",
        )
        for shared, sharing in users.items()
        if len(sharing) > 1
    ]
    if problems:
        raise RecipeError(problems)
