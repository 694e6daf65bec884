"""Let Accelerate's own FSDP2 code run on gloo processes of the CPU. Import it before Accelerate.

Accelerate takes FSDP for a matter of GPUs: on a CPU it runs DDP without a word. Here it finds the
CPU to be torch's accelerator, and gets gloo for its backend; everything else is its own.
"""

import os

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch.distributed
from accelerate import state
from accelerate.utils import DistributedType

if not torch.distributed.is_initialized():
    torch.distributed.init_process_group("gloo")
state.PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
