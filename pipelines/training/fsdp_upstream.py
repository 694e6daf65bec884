"""Private names of torch's FSDP2. Tests of engines, and test_training_upstream.py, hold them."""

from __future__ import annotations

from typing import Any

from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


def reshards_after_forward(module: FSDPModule) -> bool:
    """Tell whether a module drops the parameters of other processes after its forward pass.

    FSDPModule has a setter alone.
    """
    groups = module._get_fsdp_state()._fsdp_param_groups
    return any(group.post_forward_mesh_info is not None for group in groups)


def replace_policy(module: FSDPModule, policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    """Let a module gather and compute by another policy from now on; return the one before.

    FSDP2 takes a policy when it shards a module, and no other afterwards. What was gathered in
    another type is freed.
    """
    module.reshard()
    state: Any = module._get_fsdp_state()
    before: MixedPrecisionPolicy = state._mp_policy
    state._mp_policy = policy
    for group in state._fsdp_param_groups:
        group.mp_policy = policy
        for parameter in group.fsdp_params:
            parameter.mp_policy = policy
            parameter.all_gather_outputs = []
            vars(parameter).pop("_unsharded_param", None)
        group._init_mp_dtypes()
    return before
