"""What each engine keeps on a GPU and sends in a step: formulas, with their assumptions.

Of n processes, each sends (n - 1) / n of a tensor to gather it from all or to reduce and scatter
it, and twice that to reduce it everywhere (a ring).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.planning.gpus import CONTEXT, UTILISATION, Gpu, GpuBytes
from pipelines.planning.parameters import Parameters
from pipelines.training.zero_config import BUCKET

BF16, FP32 = 2, 4
DDP, FSDP2, ZERO2, ZERO3 = "DDP", "FSDP2", "ZeRO-2", "ZeRO-3"
MACHINE = 8
"""GPUs of a machine."""
LIVE = 1_000_000_000
"""Parameters that ZeRO-3 may keep gathered: DeepSpeed's default of stage3_max_live_parameters."""
REACHED = 0.8
"""Of a link's rate that a collective reaches; an assumption."""


@dataclass(frozen=True)
class Link:
    """What the slowest part of a ring of GPUs sends over."""

    name: str
    gigabytes: float
    """GB/s in one direction, as the maker says; of a GPU, or of a machine."""
    between_machines: bool = False


LINKS = (
    Link("NVLink, 450 GB/s a GPU", 450),
    Link("PCIe 4.0, 32 GB/s a GPU", 32),
    Link("8 x 400 Gb/s a machine", 400, between_machines=True),
    Link("400 Gb/s a machine", 50, between_machines=True),
    Link("100 Gb/s a machine", 12.5, between_machines=True),
)


def held(engine: str, needed: GpuBytes, parameters: Parameters, num_gpus: int) -> float:
    """Return the bytes that a GPU holds in addition to the activations."""
    trained, base = needed.gradients / FP32, parameters.base
    block = parameters.in_blocks / parameters.num_layers
    outside = base - parameters.in_blocks
    rest = CONTEXT + needed.loss
    if engine == DDP or num_gpus == 1:
        return needed.fixed
    if engine == FSDP2:
        states = needed.weights + needed.gradients + needed.optimizer
        # in bfloat16: all outside of the blocks, a block and the next one; one gradient of a block
        gathered = BF16 * (outside + 2 * block + min(trained, outside + block))
        return rest + states / num_gpus + gathered
    # What DeepSpeed gathers and reduces is fp32; autocast makes bfloat16 copies as with DDP
    # Its optimizer updates weights of its own
    states = FP32 * trained + needed.gradients + needed.optimizer
    whole = rest + needed.casts + FP32 * min(trained, BUCKET)
    if engine == ZERO2:
        return whole + needed.weights + states / num_gpus
    return whole + FP32 * min(base, LIVE) + (needed.weights + states) / num_gpus


def sent(
    engine: str,
    trained: int,
    parameters: Parameters,
    num_gpus: int,
    *,
    passes: int = 1,
    element: int = BF16,
) -> float:
    """Return the bytes that a GPU sends in a step of a number of forward and backward passes.

    `element` are the bytes of what FSDP2 sends; DDP and DeepSpeed send fp32.
    """
    part = (num_gpus - 1) / num_gpus
    if engine == DDP:
        return part * 2 * FP32 * trained
    if engine == FSDP2:  # blocks are gathered in the forward and in the backward pass
        gathered = 2 * parameters.in_blocks + (parameters.base - parameters.in_blocks)
        return part * element * (passes * gathered + trained)
    if engine == ZERO2:
        return part * FP32 * (passes * trained + trained)
    return part * FP32 * passes * (2 * parameters.base + trained)


def computing_seconds(flops: float, gpu: Gpu, num_gpus: int) -> float:
    """Return the seconds of a step's operations, shared by the GPUs."""
    return flops / num_gpus / (gpu.teraflops * 1e12 * UTILISATION)


def sending_seconds(num_bytes: float, link: Link) -> float:
    """Return the seconds in which a GPU, or the machine that a ring passes through, sends bytes."""
    return num_bytes / (link.gigabytes * 1e9 * REACHED)
