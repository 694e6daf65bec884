"""Open the process group, and compare its size with the launcher's request."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from datetime import timedelta

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from pipelines.collectives_upstream import is_communication_error
from pipelines.errors import Problem, RecipeError
from pipelines.training.engines import FSDP2, Engine, requested_engine, without_gpus
from pipelines.training.launcher import check_request, launcher_request

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable with the network interface of gloo, torch's backend on CPUs."""


def check_world_size(timeout: float = 600.0) -> int:
    """Open the process group and return its size; a collective may take `timeout` seconds.

    Raise RecipeError if the launcher was to start another number of processes, or for what this
    machine cannot run.
    """
    request = launcher_request()
    check_request(request)
    on_cpu = request.use_cpu or not torch.accelerator.is_available()
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks for a GPU by itself
    # Without `cpu`, Accelerate takes ranks on a machine without a GPU for independent jobs
    try:
        state = PartialState(cpu=on_cpu, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        if not is_communication_error(error):
            raise
        text = f"{socket.gethostname()} cannot connect to the other machines: "
        text += f"{str(error).splitlines()[0]}. On a CPU set {INTERFACE} to the network interface "
        text += f"that reaches {os.environ['MASTER_ADDR']}, on every machine."
        raise RecipeError([Problem("accelerate launch", text)]) from None
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


def choose_interface(own_address: str, addresses: Sequence[str]) -> None:
    """Let gloo use the interface with the own address, where ranks have several addresses.

    By itself it uses the address of the host name. Where that is a loopback address, as in many
    containers, ranks of other machines would wait for it in vain. A choice in the environment has
    precedence.
    """
    if os.environ.get(INTERFACE) or len(set(addresses)) == 1 or not name_is_loopback():
        return
    for interface, of_interface in psutil.net_if_addrs().items():
        if own_address in (each.address for each in of_interface):
            os.environ[INTERFACE] = interface


def name_is_loopback() -> bool:
    """Tell whether the host name is that of a loopback address, or of none."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(each[4][0])).is_loopback for each in found)


def check_device(engine: Engine) -> None:
    """Raise RecipeError for an engine that Accelerate replaces by DDP on this device."""
    if engine is FSDP2 and PartialState().distributed_type in (
        DistributedType.MULTI_CPU,
        DistributedType.NO,
    ):
        raise RecipeError([without_gpus(engine)])
