"""What a GPU computes in bfloat16 while it trains, is in fp32 where the result is scored."""

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

from helpers.factories import method
from pipelines.models.build import build_model
from pipelines.models.quantization import computing_in
from pipelines.process import tf32_products
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.training.precision import precision_of_training


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Restore what a run on a CPU sets for good."""
    matmul = torch.backends.mkldnn.matmul
    precision = matmul.fp32_precision
    yield
    matmul.fp32_precision = precision


def quantised(name, tasks, checkpoint, tokenizer):
    recipe = Recipe(
        name="bits",
        task=tasks["causal_lm"],
        model=Model(name_or_path=str(checkpoint)),
        train=Train(max_steps=1),
        **method(name),
    )
    return build_model(recipe, tokenizer, ())


@pytest.mark.parametrize("name", ["8bit", "4bit"])
def test_quantised_layers_compute_in_bfloat16_inside_and_as_before_outside(
    name, tasks, checkpoint, tokenizer
):
    model = quantised(name, tasks, checkpoint, tokenizer)
    ids = torch.arange(12)[None]
    types, biases = [], []
    for module in model.modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            module.register_forward_hook(lambda layer, given, output: types.append(output.dtype))
            module.bias.data.add_(torch.rand_like(module.bias) / 3)  # no bfloat16 has these bits
            biases.append((module, module.bias.data.clone()))
    before = model(ids).logits
    assert set(types) == {torch.float32}
    types.clear()
    with computing_in(model, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model(ids).logits
    expected = torch.bfloat16 if name == "8bit" else torch.float32  # 4-bit ones give their input's
    assert expected in types
    assert not inside.float().equal(before)
    assert (inside.float() - before).norm() < 0.05 * before.norm()
    for module, bias in biases:
        assert module.bias.dtype == torch.float32
        assert module.bias.equal(bias)
    assert model(ids).logits.equal(before)


def test_products_have_tf32_inside_alone():
    with tf32_products():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_cpu_keeps_its_precision(monkeypatch, tasks, checkpoint, tokenizer):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    model = quantised("4bit", tasks, checkpoint, tokenizer)
    with precision_of_training(model):
        types = {getattr(each, "compute_dtype", torch.float32) for each in model.modules()}
        assert types == {torch.float32}
        assert torch.backends.cuda.matmul.fp32_precision != "tf32"
