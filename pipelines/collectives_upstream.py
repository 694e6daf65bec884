"""What torch's process groups say of an error, where no class of exceptions tells it.

tests/test_collectives_upstream.py fails where torch says it in other words.
"""

from __future__ import annotations


def is_communication_error(error: BaseException) -> bool:
    """Tell whether a collective failed because another rank did not take part in it.

    NCCL's errors have a class. Gloo's are RuntimeErrors that begin with the place in its source.
    """
    from torch import distributed  # not at import: commands without torch import this module

    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error).partition("\n")[0]
