"""A private name of torch's FSDP2, held by tests/training/test_training_upstream.py."""

from __future__ import annotations

from torch.distributed.fsdp import FSDPModule


def reshards_after_forward(module: FSDPModule) -> bool:
    """Tell whether a module drops the parameters of other processes after its forward pass.

    FSDPModule has a setter alone.
    """
    groups = module._get_fsdp_state()._fsdp_param_groups
    return any(group.post_forward_mesh_info is not None for group in groups)
