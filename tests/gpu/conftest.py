"""Fixtures of the tests that run on a GPU."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products

import pytest  # noqa: E402

from helpers.devices import DEVICE, process_on  # noqa: E402


@pytest.fixture(scope="session")
def device():
    """The device under test, "cuda", or "cpu" where the tests themselves are tried."""
    return DEVICE


@pytest.fixture
def on_device(device):
    """Compute on the device, in fp32."""
    with process_on(device):
        yield device
