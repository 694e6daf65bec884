"""Two processes over gloo: bytes that one sends in a step, and memory that it keeps, by engine.

The model is wrapped as Accelerate wraps it: DDP with gradients as views of its buckets; FSDP2 with
each block, then norm and tied embeddings, then the rest as units. Numbers are fp32, as on a CPU.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from sharing import DDP, FP32, FSDP2, sent
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel

from pipelines.planning.parameters import Parameters, count_parameters
from pipelines.planning.peak import memory_at_rest

CONFIG = {"n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
"""GPT-2 124M, but for the positions."""
NUM_PROCESSES, STEPS = 2, 2


def measure() -> None:
    """Print what was measured next to the formulas."""
    transformers.logging.set_verbosity_error()
    base = parameters_of(CONFIG).base
    print(f"{base / 1e6:.1f} M parameters, fp32, {NUM_PROCESSES} processes\n")
    print("| engine | passes | sent in a step, MB | formula | kept, MB | formula | resident, MB |")
    print("|---|---|---|---|---|---|---|")
    for engine in (DDP, FSDP2):
        for passes in (1, 2):
            (got,) = in_two_processes([(engine, passes)], CONFIG)
            cells = [
                got["sent"],
                sent_formula(engine, passes, CONFIG, got["reduce_scatter"]),
                got["kept"],
                kept_formula(engine, CONFIG),
                got["resident"],
            ]
            numbers = " | ".join(f"{each / 1e6:,.1f}" for each in cells)
            print(f"| {engine} | {passes} | {numbers} |", flush=True)
    print(f"\nA reduce-scatter sends {got['reduce_scatter']:.2f} times what a ring would.")


def parameters_of(config: dict[str, int]) -> Parameters:
    """Return the parameters of a GPT-2."""
    with torch.device("meta"):
        return count_parameters(GPT2LMHeadModel(GPT2Config(**config)))


def sent_formula(
    engine: str, passes: int, config: dict[str, int], reduce_scatter: float = 1.0
) -> float:
    """Return the bytes that a process sends in a step of full fine-tuning in fp32.

    `reduce_scatter` is how much more than a ring a reduce-scatter sends: gloo does an all-reduce.
    """
    found = parameters_of(config)
    ring = sent(engine, found.base, found, NUM_PROCESSES, passes=passes, element=FP32)
    if engine == DDP:
        return ring
    part = (NUM_PROCESSES - 1) / NUM_PROCESSES
    return ring + (reduce_scatter - 1) * part * FP32 * found.base


def kept_formula(engine: str, config: dict[str, int]) -> float:
    """Return the bytes of weights, gradients and AdamW's two moments in a process."""
    states = 4 * FP32 * parameters_of(config).base
    return states if engine == DDP else states / NUM_PROCESSES


def in_two_processes(
    cases: list[tuple[str, int]], config: dict[str, int]
) -> list[dict[str, float]]:
    """Return what the first of two processes measures for engines and numbers of passes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(worker, args=(cases, config, port, queue), nprocs=NUM_PROCESSES)
    return queue.get()


def worker(
    rank: int, cases: list[tuple[str, int]], config: dict[str, int], port: int, queue: Any
) -> None:
    """Train for some steps of each case and put what they took onto the queue."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=NUM_PROCESSES)
    found = [train(engine, passes, config) for engine, passes in cases]
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


def train(engine: str, passes: int, config: dict[str, int]) -> dict[str, float]:
    """Return what a model takes in this process; bytes."""
    factor = reduce_scatter_factor()
    before = memory_at_rest()
    model = wrapped(engine, GPT2LMHeadModel(GPT2Config(**config)))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    step(model, optimizer, passes)  # makes the optimizer's state
    started = bytes_written()
    for _ in range(STEPS):
        step(model, optimizer, passes)
    return {
        "sent": (bytes_written() - started) / STEPS,
        "kept": kept(model, optimizer),
        "resident": memory_at_rest() - before,
        "reduce_scatter": factor,
    }


def wrapped(engine: str, model: Any) -> Any:
    """Return a model that an engine trains."""
    if engine == DDP:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    mesh = dist.device_mesh.init_device_mesh("cpu", (NUM_PROCESSES,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    tail = [model.transformer.ln_f, model.transformer.wte, model.lm_head]
    fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def step(model: Any, optimizer: torch.optim.Optimizer, passes: int) -> None:
    """Do an optimizer step; only the last of its passes synchronises gradients."""
    ids = torch.arange(64)[None]
    for number in range(passes):
        last = number == passes - 1
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = last
        else:
            model.set_requires_gradient_sync(last)
        model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # gradients stay, to be counted


def kept(model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of a process's part of weights, gradients and optimizer state."""
    parameters = list(model.parameters())
    gradients = [each.grad for each in parameters]
    states = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    return sum(local(each).nbytes for each in (*parameters, *gradients, *states))


def local(tensor: Any) -> torch.Tensor:
    """Return a process's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def reduce_scatter_factor() -> float:
    """Return the bytes that a reduce-scatter sends, by those of a ring."""
    whole = torch.ones(2**20 * NUM_PROCESSES)
    started = bytes_written()
    dist.reduce_scatter_tensor(torch.empty(2**20), whole)
    ring = (NUM_PROCESSES - 1) / NUM_PROCESSES * whole.nbytes
    return (bytes_written() - started) / ring


def bytes_written() -> int:
    """Return the bytes that this process has written; sockets are counted."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])
