"""Private names of DeepSpeed's ZeRO optimizers, held by tests/test_deepspeed.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.integrations import deepspeed as integration


def take_backward(accelerator: Any, wrapper: Callable[[Any], Any]) -> Any:
    """Let Accelerate make backward passes by a wrapper of DeepSpeed's engine; return the engine.

    Its own wrapper, which it makes itself, updates the weights in the last of them.
    """
    engine = accelerator.deepspeed_engine_wrapped.engine
    accelerator.deepspeed_engine_wrapped = wrapper(engine)
    return engine


def is_stage_3(zero: Any) -> bool:
    """Tell whether an optimizer shards the parameters, too."""
    return hasattr(zero, "fp32_partitioned_groups_flat")


def gradient_norm(zero: Any) -> float:
    """Return the norm of the gradients over all processes, inf if it is not finite.

    DeepSpeed has it only after its update, which it makes, or skips, whatever the norm is.
    """
    from deepspeed.runtime.utils import combine_grad_norm_groups

    if is_stage_3(zero):
        norm = combine_grad_norm_groups(zero._get_norm_groups())
    else:
        norm = zero.scaled_global_norm()
    return float(norm)


def flat_partitions(zero: Any) -> list[torch.Tensor]:
    """Return the flat tensors whose elements this process updates."""
    if is_stage_3(zero):
        return list(zero.fp32_partitioned_groups_flat)
    return list(zero.single_partition_of_fp32_groups)


def link_states(zero: Any) -> None:
    """Let DeepSpeed find the states of the flat tensors by parameter.

    It does so itself after the first group of its first step, when other groups have no state.
    """
    if not is_stage_3(zero):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def hf_deepspeed_config() -> Any:
    """Return the config of DeepSpeed that transformers, PEFT and trl find, or None.

    transformers has public ways to set it and to ask what it says.
    """
    reference: Any = integration._hf_deepspeed_config_weak_ref
    return None if reference is None else reference()


def remove_hooks(zero: Any) -> None:
    """Remove what gathers and drops the parameters of each module around its passes.

    trl's function of the name leaves one, which compares the passes of all processes.
    """
    offload = zero.parameter_offload
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    offload._remove_module_hooks()
    offload.forward_hooks, offload.backward_hooks = [], []


def add_hooks(zero: Any) -> None:
    """Add what `remove_hooks` removed."""
    from deepspeed.runtime.zero import parameter_offload

    zero.parameter_offload.setup_zero_stage3_hooks()
    parameter_offload.FWD_MODULE_STACK.pop()  # the model is on the stack already
