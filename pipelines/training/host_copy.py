"""Numbers on their way from a GPU to the host, which does not wait for them."""

from __future__ import annotations

from typing import Any

import torch


class HostCopy:
    """A copy of a tensor on the host, to be read some time later."""

    def __init__(self, tensor: torch.Tensor):
        """Begin to copy, once the device has computed the tensor."""
        on_gpu = tensor.is_cuda
        self.copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
        self.copy.copy_(tensor.detach(), non_blocking=on_gpu)
        self.arrived: Any = None
        if on_gpu:
            event: Any = torch.cuda.Event
            self.arrived = event()
            self.arrived.record()

    def read(self) -> float:
        """Return the number; wait until it has arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.copy.numpy())
