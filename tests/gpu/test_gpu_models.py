"""Losses and quantised bases on a GPU, against float64 and full precision."""

import pytest
import torch
import torch.nn.functional as F

from helpers.devices import distance
from helpers.factories import make_tasks
from pipelines.models import linear_cross_entropy
from pipelines.models.build import load_base
from pipelines.models.liger_upstream import has_kernel
from pipelines.recipe.values import NF4, Int8, Model

pytestmark = pytest.mark.gpu
ROWS, WIDTH, CLASSES = 260, 64, 1001
"""Classes are odd: a GPU's products are padded."""


@pytest.fixture(params=["own", "liger"])
def kernel(request, device, monkeypatch):
    """The loss with torch's operations, and with Liger's kernel."""
    if request.param == "own":
        monkeypatch.setattr(linear_cross_entropy, "has_kernel", lambda device: False)
    elif not has_kernel(torch.device(device)):
        pytest.skip("Liger's kernel needs a GPU and the extra gpu")


@pytest.mark.parametrize("chunk", [2**25, 30 * CLASSES])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_losses_and_gradients_are_those_of_float64(
    kernel, device, monkeypatch, chunk, dtype, tolerance, with_bias
):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(CLASSES, WIDTH, generator=generator) / 4
    bias = torch.randn(CLASSES, generator=generator) if with_bias else None
    targets = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    targets[100:140] = -100
    given = [each for each in (rows, weight, bias) if each is not None]
    exact = [each.double().requires_grad_() for each in given]
    losses = F.cross_entropy(F.linear(*exact), targets, reduction="none")
    losses.sum().backward()

    monkeypatch.setitem(linear_cross_entropy.CHUNK, device, chunk)
    moved = [each.to(device).requires_grad_() for each in given]
    arguments = (moved[0], moved[1], moved[2] if with_bias else None, targets.to(device), dtype)
    total = linear_cross_entropy.summed_loss(*arguments)
    (2 * total).backward()
    assert total.dtype == torch.float32
    assert distance(total, losses.sum()) < tolerance
    for found, expected in zip(moved, exact, strict=True):
        assert distance(found.grad, 2 * expected.grad) < tolerance
    with torch.no_grad():
        each = linear_cross_entropy.each_loss(*arguments)
    assert distance(each, losses) < tolerance
    assert not each[100:140].any()


@pytest.mark.parametrize(
    ("quantization", "layer", "dtype", "tolerance"),
    [(Int8(), "Linear8bitLt", torch.int8, 0.05), (NF4(), "Linear4bit", torch.uint8, 0.4)],
    ids=["8bit", "4bit"],
)
def test_a_quantised_base_gives_the_logits_of_full_precision_within_its_error(
    on_device, checkpoint, tokenizer, helpdesk, quantization, layer, dtype, tolerance
):
    task, model = make_tasks(helpdesk)["causal_lm"], Model(name_or_path=str(checkpoint))
    ids = torch.randint(0, len(tokenizer), (4, 64), generator=torch.Generator().manual_seed(0)).to(
        on_device
    )
    logits = []
    for kind in (None, quantization):
        base = load_base(task, model, (), quantization=kind, tokenizer=tokenizer)
        base = base if kind else base.to(on_device)
        with torch.no_grad():
            logits.append(base.eval()(ids).logits)
    assert 0 < distance(logits[1], logits[0]) < tolerance
    quantised = base.transformer.h[0].mlp.c_fc
    assert type(quantised).__name__ == layer
    assert quantised.weight.dtype == dtype
    assert quantised.weight.device.type == on_device
