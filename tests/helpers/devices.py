"""The device of the tests marked gpu, and what they compare on it.

GPT2_RECIPES_TEST_DEVICE=cpu runs them on a CPU, to try the tests themselves.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

DEVICE = os.environ.get("GPT2_RECIPES_TEST_DEVICE", "cuda")


@contextmanager
def process_on(device: str, precision: str = "no") -> Iterator[None]:
    """Let a run compute on a device in a precision, as if a launcher had told it to."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    on_cpu = device == "cpu"
    given = {"ACCELERATE_USE_CPU": str(on_cpu).lower(), "ACCELERATE_MIXED_PRECISION": precision}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert PartialState(cpu=on_cpu).device.type == device
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        AcceleratorState._reset_state(reset_partial_state=True)


def distance(found, expected) -> float:
    """Return the norm of the difference of two tensors, relative to that of the expected one."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def gradient_distance(found: dict, expected: dict) -> float:
    """Return the largest distance of a gradient, relative to its norm, or a hundredth of all's.

    Some gradients are 0 but for rounding, such as those of the biases of keys.
    """
    assert found.keys() == expected.keys()
    assert expected
    total = sum(float(each.norm()) ** 2 for each in expected.values()) ** 0.5
    return max(
        float((found[name] - each).norm()) / max(float(each.norm()), 1e-2 * total)
        for name, each in expected.items()
    )
