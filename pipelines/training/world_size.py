"""Compare the world size with the launcher's request."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from pipelines.errors import Problem, RecipeError
from pipelines.training.engines import FSDP2, Engine, requested_engine, without_gpus
from pipelines.training.launcher import check_request, launcher_request


def check_world_size() -> int:
    """Return the world size. Raise RecipeError if the launcher was to start another number."""
    request = launcher_request()
    check_request(request)
    # Without `cpu`, Accelerate takes ranks on a machine without a GPU for independent jobs
    state = PartialState(cpu=request.use_cpu or not torch.accelerator.is_available())
    if request.num_processes not in (None, 0, state.num_processes):
        raise RecipeError(
            [
                Problem(
                    "accelerate launch",
                    f"{request.num_processes} processes were requested, {state.num_processes} "
                    "started. On a CPU use --config_file accelerate_configs/cpu_2_processes.yaml.",
                )
            ]
        )
    check_device(requested_engine())
    return int(state.num_processes)


def check_device(engine: Engine) -> None:
    """Raise RecipeError for an engine that Accelerate replaces by DDP on this device."""
    if engine is FSDP2 and PartialState().distributed_type in (
        DistributedType.MULTI_CPU,
        DistributedType.NO,
    ):
        raise RecipeError([without_gpus(engine)])
