"""Counts what makes a host wait for its device: a value of a tensor that Python or torch reads."""

import traceback
from contextlib import contextmanager

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PYTHON = ("item", "tolist", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__")
TORCH = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal")
HOST = ("torch/utils/data/dataloader.py",)
"""Files below which tensors are rows on the host."""


def place() -> str | None:
    """Return the file and line, outside of torch, that reads a value; None for rows on the host."""
    frames = traceback.extract_stack()
    if any(each.filename.endswith(HOST) for each in frames):
        return None
    outside = [f for f in frames if "/torch/" not in f.filename and f.filename != __file__]
    return f"{outside[-1].filename}:{outside[-1].lineno}"


class OfTorch(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().split(".")[0] in TORCH and (where := place()):
            self.found.append(f"{function.name()} {where}")
        return function(*args, **(kwargs or {}))


class OfPython(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in PYTHON and (where := place()):
            self.found.append(f"{function.__name__} {where}")
        return function(*args, **(kwargs or {}))


@contextmanager
def waits():
    """Yield a list of the reads inside, each with its place."""
    found = []
    with OfTorch(found), OfPython(found):
        yield found
