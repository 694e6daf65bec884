"""On a GPU batches take flash attention, right to bfloat16, without waiting for the device."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2ForSequenceClassification

from pipelines.data.padding import pad_inputs
from pipelines.models import causal_attention
from pipelines.models.causal_attention import leave_masks_out, use_causal_attention
from pipelines.models.packing import accept_plans, plan
from pipelines.models.segments import flash_attention_works

pytestmark = pytest.mark.gpu
LENGTHS = (700, 512, 300, 40, 9, 650, 1)


def model_on_gpu(*, causal, dropout=0.0):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 256, "vocab_size": 997, "n_positions": 1024}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": dropout}
    config = GPT2Config(**sizes, **drops, pad_token_id=0, use_cache=False, initializer_range=0.1)
    model = GPT2ForSequenceClassification(config).cuda()
    if causal:
        use_causal_attention(model)
        assert leave_masks_out(model) is not None
    accept_plans(model.base_model)
    return model


def batch(*, packed):
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randint(1, 997, (length,), generator=generator).tolist() for length in LENGTHS]
    inputs = pad_inputs([{"input_ids": ids} for ids in draw], 0, 8)
    if packed:
        how = plan(LENGTHS, inputs["input_ids"].shape[1])
        assert how is not None
        assert how[0].shape[1] >= causal_attention.LONG
        inputs["plan"] = tuple(each.cuda() for each in how)
    return {name: each.cuda() if name != "plan" else each for name, each in inputs.items()}


def loss_and_gradients(model, inputs):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = model(**inputs).logits
    loss = logits.float().square().sum()
    loss.backward()
    return logits.detach().float(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 80, 128])
def test_flash_attention_to_segments_is_right_here(dtype, width):
    assert flash_attention_works(torch.device("cuda", 0), dtype, width)


@pytest.mark.parametrize("packed", [False, True])
def test_batches_without_masks_learn_what_those_with_masks_do(packed):
    found = loss_and_gradients(model_on_gpu(causal=True), batch(packed=packed))
    expected = loss_and_gradients(model_on_gpu(causal=False), batch(packed=False))
    for got, right in zip(found, expected, strict=True):
        assert float((got - right).norm() / right.norm()) < 3e-2


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("packed", [False, True])
def test_batches_take_flash_attention_and_wait_for_nothing(packed, dropout):
    model, inputs = model_on_gpu(causal=True, dropout=dropout), batch(packed=packed)
    head = model.score
    body = model.base_model

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            states = body(**inputs).last_hidden_state
            head(states).float().square().mean().backward()

    step()  # tries the kernel
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    names = {event.key for event in seen.key_averages()}
    assert any("flash_attention_forward" in name for name in names)
    assert not any("efficient_attention" in name or "attention_math" in name for name in names)


def test_a_compiled_fp32_run_keeps_full_precision():
    from pipelines.models.compiling import compile_blocks

    before = torch.backends.cuda.matmul.allow_tf32
    compile_blocks(model_on_gpu(causal=True), one_length=True)
    assert torch.backends.cuda.matmul.allow_tf32 == before
