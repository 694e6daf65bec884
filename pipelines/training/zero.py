"""DeepSpeed's ZeRO-2 and ZeRO-3 behind the Trainer's own steps, checkpoints and results.

A checkpoint has the whole state, in the files of every other engine: parameter by parameter, all
processes gather what some of them write, and each takes its part of what it reads. So a run resumes
on any number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations import deepspeed as integration

from pipelines.training.zero_upstream import (
    add_hooks,
    flat_partitions,
    hf_deepspeed_config,
    is_stage_3,
    link_states,
    remove_hooks,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, without the number of steps."""


def gathered_state(engine: Any, *, only_trained: bool, keep: bool) -> dict[str, torch.Tensor]:
    """Return the whole state in full precision, on the CPU; {} on a process that does not keep it.

    Every process must call it. Tied weights are in it once.
    """
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    state = {} if only_trained else {n: b for n, b in engine.module.named_buffers()}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter)
            if keep:
                state[name] = whole.cpu().contiguous()
        elif not only_trained:
            with GatheredParameters([parameter]):
                if keep:
                    state[name] = parameter.detach().cpu().clone()
    return state if keep else {}


@contextmanager
def unsharded(engine: Any) -> Iterator[None]:
    """Hold the whole of every parameter on every process inside, so that one can compute alone.

    Every process must enter; nothing happens to ZeRO-2.
    """
    if not is_stage_3(engine.optimizer):
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(list(engine.module.parameters())), announced(None):
        remove_hooks(engine.optimizer)
        try:
            yield
        finally:
            add_hooks(engine.optimizer)


@contextmanager
def announced(config: Any) -> Iterator[None]:
    """Let transformers, PEFT and trl find a config of DeepSpeed inside, or None.

    With ZeRO-3 they gather the weights that they use, and shard those that they load.
    """
    before = hf_deepspeed_config()
    announce(config)
    try:
        yield
    finally:
        announce(before)


def announce(config: Any) -> None:
    """Let transformers, PEFT and trl find a config of DeepSpeed from now on, or None."""
    untyped: Any = integration
    if config is None:
        untyped.unset_hf_deepspeed_config()
    else:
        untyped.set_hf_deepspeed_config(config)


def load_weights(engine: Any, load: Callable[[], None]) -> None:
    """Let `load` fill whole parameters in full precision; then take this process's part.

    The parameters that train are loaded alone.
    """
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param

    trained = [each for each in engine.module.parameters() if each.requires_grad]
    sharded = [each.data for each in trained]
    for each in trained:
        each.data = torch.empty(shape_of(each), dtype=torch.float32, device=each.device)
    load()
    whole = [each.data for each in trained]
    for parameter, data, value in zip(trained, sharded, whole, strict=True):
        parameter.data = data
        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)
        safe_set_full_fp32_param(parameter, value)


def shape_of(parameter: Any) -> torch.Size:
    """Return the shape of the whole parameter."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def gathered_optimizer(
    engine: Any, groups: Sequence[Mapping[str, Any]], *, keep: bool
) -> dict[str, Any]:
    """Return the state of AdamW as without DeepSpeed, on the CPU; {} where it is not kept.

    `groups` are those that the optimizer had before DeepSpeed. Every process must call it.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    zero = engine.optimizer
    link_states(zero)
    step = zero.optimizer.state[flat_partitions(zero)[0]]["step"].cpu()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for index, parameter in enumerate(parameters_of(groups)):
        whole = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
        if keep:
            state[index] = {"step": step.clone(), **{k: v.cpu() for k, v in whole.items()}}
    return {"state": state, "param_groups": numbered_groups(groups)} if keep else {}


def load_optimizer(
    engine: Any, groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]
) -> None:
    """Take this process's part of the state of AdamW; its options are those of the recipe."""
    from deepspeed.utils import safe_set_full_optimizer_state

    zero, states = engine.optimizer, saved["state"]
    for flat in flat_partitions(zero):
        step = states[0]["step"].to(flat.device, copy=True)  # each counts by itself
        moments = {name: torch.zeros_like(flat) for name in MOMENTS}
        zero.optimizer.state[flat] = {"step": step, **moments}
    link_states(zero)
    for index, parameter in enumerate(parameters_of(groups)):
        for name in MOMENTS:
            value = states[index][name].to(parameter.device)
            safe_set_full_optimizer_state(parameter, value, name)


def parameters_of(groups: Sequence[Mapping[str, Any]]) -> list[torch.nn.Parameter]:
    """Return the parameters of an optimizer's groups, in the order in which a state counts them."""
    return [parameter for group in groups for parameter in group["params"]]


def numbered_groups(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return an optimizer's groups as its state has them."""
    numbers = itertools.count()
    return [{**group, "params": [next(numbers) for _ in group["params"]]} for group in groups]
