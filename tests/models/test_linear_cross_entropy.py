"""The loss of a linear head and its gradients are those of plain logits in double precision."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pipelines.models import linear_cross_entropy
from pipelines.models.linear_cross_entropy import IGNORED, each_loss, summed_loss

ROWS, WIDTH, CLASSES = 37, 16, 101


@pytest.fixture(params=["whole", "chunks", "chunks, padded"])
def way(request, monkeypatch):
    """Compute all rows at once, or a few, or with classes added to a multiple of 64."""
    if request.param != "whole":
        monkeypatch.setitem(linear_cross_entropy.CHUNK, "cpu", 10 * CLASSES)
    if request.param == "chunks, padded":
        monkeypatch.setitem(linear_cross_entropy.ALIGNED, "cpu", 64)


def inputs(dtype, *, bias):
    """Return rows, weight, bias and targets; every fifth row has no loss."""
    torch.manual_seed(0)
    rows, weight = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(CLASSES, WIDTH, dtype=dtype)
    given = [rows, weight, torch.randn(CLASSES, dtype=dtype) if bias else None]
    targets = torch.randint(0, CLASSES, (ROWS,))
    targets[::5] = IGNORED
    return [each if each is None else each.requires_grad_() for each in given], targets


def plain(given, targets):
    """Return losses and gradients from logits in double precision."""
    double = [each if each is None else each.detach().double().requires_grad_() for each in given]
    losses = F.cross_entropy(F.linear(*double), targets, reduction="none")
    losses.sum().backward()
    return losses.detach(), [each.grad for each in double if each is not None]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
def test_losses_and_gradients_are_those_of_plain_logits(dtype, tolerance, bias):
    given, targets = inputs(dtype, bias=bias)
    losses, gradients = plain(given, targets)
    total = summed_loss(*given, targets, dtype)
    total.backward()
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(total.detach()) == pytest.approx(float(losses.sum()), rel=tolerance)
    for found, expected in zip(
        [each for each in given if each is not None], gradients, strict=True
    ):
        assert found.grad.dtype == dtype
        assert float((found.grad - expected).norm() / expected.norm()) < tolerance
    with torch.no_grad():
        each = each_loss(*given, targets, dtype)
    assert float((each - losses).norm() / losses.norm()) < tolerance
    assert not each[::5].any()


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradients_that_are_wanted_are_computed(wanted):
    (rows, weight, _), targets = inputs(torch.float32, bias=False)
    rows.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    _, (of_rows, of_weight) = plain((rows, weight, None), targets)
    summed_loss(rows, weight, None, targets, torch.float32).backward()
    for found, expected, due in zip((rows, weight), (of_rows, of_weight), wanted, strict=True):
        if due:
            torch.testing.assert_close(found.grad, expected.float(), rtol=1e-5, atol=1e-5)
        else:
            assert found.grad is None


def test_a_scaled_loss_has_scaled_gradients_and_none_twice():
    given, targets = inputs(torch.float32, bias=True)
    _, gradients = plain(given, targets)
    loss = summed_loss(*given, targets, torch.float32) / 8
    loss.backward(retain_graph=True)
    for found, expected in zip(given, gradients, strict=True):
        torch.testing.assert_close(found.grad, expected.float() / 8, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_compiled_function_with_the_loss_has_its_gradients():
    given, targets = inputs(torch.float32, bias=False)
    _, (of_rows, of_weight) = plain(given, targets)

    @torch.compile(backend="aot_eager")
    def doubled(rows, weight):
        return summed_loss(rows * 2, weight / 2, None, targets, torch.float32)

    doubled(given[0], given[1]).backward()
    torch.testing.assert_close(given[0].grad, of_rows.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given[1].grad, of_weight.float(), rtol=1e-5, atol=1e-5)


KERNEL = """
import torch
from pipelines.models import liger_upstream, linear_cross_entropy

torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
    logits, targets = (3 * torch.randn(6, 40_001)).to(dtype), torch.randint(0, 40_001, (6,))
    targets[2] = -100
    losses, expected = linear_cross_entropy.losses_and_gradients(logits.clone(), targets)
    found = liger_upstream.losses_and_gradients_in_place(logits, targets, -100)
    assert found.dtype == torch.float32 and not logits[2].any()
    torch.testing.assert_close(found, losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
"""


def test_ligers_kernel_gives_the_same_in_tritons_interpreter():
    for name in ("liger_kernel", "triton"):
        pytest.importorskip(name, reason="the extra gpu is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", KERNEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("Triton's interpreter needs NumPy before 2.4, as of scripts/oldest.sh")
    assert done.returncode == 0, done.stderr
