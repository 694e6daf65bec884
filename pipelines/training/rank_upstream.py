"""What torch's process groups say of an error, where no class of exceptions tells it.

tests/training/test_rank_upstream.py fails where torch says it in other words.
"""

from __future__ import annotations

import torch.distributed as dist


def is_communication_error(error: BaseException) -> bool:
    """Tell whether a collective failed because another rank did not take part in it.

    NCCL's errors have a class. Gloo's are RuntimeErrors that begin with the place in its source.
    """
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error).partition("\n")[0]
