"""What several machines need to find each other, checked before anything starts. Imports no torch.

Accelerate takes rank 0 for a machine that has none, and a launcher without an address waits on its
own machine: every machine would wait for the others until the time-out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.errors import Problem, RecipeError

ONE_PROCESS_KINDS = ("NO", "FALSE", "MULTI_CPU")  # NO is False in YAML
RANGES = {
    "num_machines": (1, math.inf),
    "machine_rank": (0, math.inf),
    "main_process_port": (0, 65_535),
}


def check_machines(values: Mapping[str, Any]) -> None:
    """Raise RecipeError for machines that could not find each other or share the processes.

    `values` are those of an Accelerate config with the launcher's flags in place of its own.
    """
    if problems := list(machine_problems(values)):
        raise RecipeError(problems)


def machine_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each value that keeps the machines from starting together."""
    wrong = [*wrong_numbers(values)]
    if wrong:
        yield from wrong
        return
    machines = values.get("num_machines") or 1
    rank = values.get("machine_rank")
    if rank is not None and rank >= machines:
        text = f"{rank} is out of range; with --num-machines {machines} it must be "
        yield Problem("machine_rank", f"{text}{ranks_of(machines)}.")
    if machines > 1:
        yield from problems_of_several(values, machines)


def wrong_numbers(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each value that is not a number, or is out of its range."""
    for name, (least, most) in RANGES.items():
        value = values.get(name)
        if value is None:
            continue
        if not isinstance(value, int):
            yield Problem(name, f"{value!r} is not a whole number.")
        elif not least <= value <= most:
            bound = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            yield Problem(name, f"{value} is out of range; it must be {bound}.")


def problems_of_several(values: Mapping[str, Any], machines: int) -> Iterator[Problem]:
    """Yield what is missing for several machines."""
    if str(values.get("distributed_type", "NO")).upper() in ONE_PROCESS_KINDS:
        text = f"{machines} machines need a config that starts several processes. Use "
        yield Problem("num_machines", f"{text}--config-file multi_node_ddp.")
    if values.get("machine_rank") is None:
        text = f"missing. Each of {machines} machines needs its own, {ranks_of(machines)}."
        yield Problem("machine_rank", text)
    if not values.get("main_process_ip"):
        text = f"missing. {machines} machines need the address of machine 0, the same on all."
        yield Problem("main_process_ip", text)
    if values.get("main_process_port") == 0:
        text = (
            "0 takes another free port on each machine. Give one, the same on all, such as 29500."
        )
        yield Problem("main_process_port", text)
    processes = values.get("num_processes") or -1  # -1 leaves the number to the launcher
    if processes > 0 and processes % machines:
        count = f"{processes} process{'es' * (processes > 1)}"
        text = f"{count} cannot be shared by {machines} machines; it counts those of "
        below = processes - processes % machines
        fitting = " or ".join(str(n) for n in (below, below + machines) if n)
        yield Problem("num_processes", f"{text}all machines together. Use {fitting}.")


def ranks_of(machines: int) -> str:
    """Return the ranks of a number of machines, for a message."""
    return f"from 0 to {machines - 1}" if machines > 1 else "0"
