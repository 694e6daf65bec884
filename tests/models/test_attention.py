"""Plain attention finds what torch's does, for every mask, and stays out of what is saved."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import pipelines.models.attention
from pipelines.models.attention import SHORT, use_unfused_attention

VOCAB, LENGTH, MODULE = 97, 24, torch.nn.Module()
GPT2 = GPT2Config(vocab_size=VOCAB, n_layer=2, n_head=4, n_embd=64, initializer_range=0.2)
GROUPED = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,  # each is of two heads of queries
    initializer_range=0.2,
)


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """Take the processor for one whose short rows take plain attention."""
    monkeypatch.setattr(pipelines.models.attention, "onednn_fp32_is_exact", lambda: True)


def model_of(config, *, plain, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict())).eval()
    model.generation_config.eos_token_id = None
    if plain:
        use_unfused_attention(model, SHORT)
        assert model.config._attn_implementation == "unfused"
    return model.to(dtype)


def inputs_of(kind):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (3, LENGTH), generator=generator)
    num_tokens, place = torch.tensor([[LENGTH], [9], [1]]), torch.arange(LENGTH)
    match kind:
        case "whole":
            return {"input_ids": ids}
        case "padded on the right":
            return {"input_ids": ids, "attention_mask": (place < num_tokens).long()}
        case "padded on the left":
            return {"input_ids": ids, "attention_mask": (place >= LENGTH - num_tokens).long()}
        case "packed":
            return {"input_ids": ids, "position_ids": (place % 9).expand(3, -1)}


KINDS = ["whole", "padded on the right", "padded on the left", "packed"]


@pytest.mark.parametrize("config", [GPT2, GROUPED], ids=["gpt2", "grouped"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_attention_finds_the_same_states_and_gradients(config, kind):
    inputs = inputs_of(kind)
    seen = inputs.get("attention_mask", torch.ones(3, LENGTH)).bool()

    def found(plain):
        model = model_of(config, plain=plain)
        logits = model(**inputs).logits[seen]
        logits.square().sum().backward()
        return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    for expected, got in zip(found(plain=False), found(plain=True), strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_plain_attention_in_bfloat16_is_near_and_finite(kind, how):
    inputs = inputs_of(kind)
    seen = inputs.get("attention_mask", torch.ones(3, LENGTH)).bool()
    expected = model_of(GPT2, plain=False)(**inputs).logits[seen].detach()
    half = how == "bfloat16"
    model = model_of(GPT2, plain=True, dtype=torch.bfloat16 if half else torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=not half):
        logits = model(**inputs).logits
    assert logits.isfinite().all()  # also where a row attends to nothing
    assert float((logits[seen] - expected).norm() / expected.norm()) < 3e-2


def test_plain_attention_drops_as_many_shares_as_asked():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 200, 8), torch.randn(2, 4, 200, 8)
    value, mask = torch.eye(200).expand(2, 4, 200, 200), torch.zeros(2, 1, 200, 200)

    def shares(dropout):
        found, _ = pipelines.models.attention.attend(
            MODULE, query, key, value, mask, dropout=dropout
        )
        return found

    whole, dropped = shares(0.0), shares(0.25)
    kept = dropped != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)


def test_a_module_without_a_mask_is_causal_all_the_same():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 20, 8)
    causal = torch.full((20, 20), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 20, 20)
    without, _ = pipelines.models.attention.attend(MODULE, query, key, value, None)
    given, _ = pipelines.models.attention.attend(MODULE, query, key, value, causal)
    torch.testing.assert_close(without, given, rtol=1e-5, atol=1e-5)


def test_biases_of_positions_are_not_lost():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    config = T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **sizes)
    model = T5ForConditionalGeneration(config).eval()
    ids = inputs_of("whole")["input_ids"]
    expected = model(input_ids=ids, labels=ids).logits
    use_unfused_attention(model, SHORT)
    assert model.config._attn_implementation == "unfused"
    torch.testing.assert_close(model(input_ids=ids, labels=ids).logits, expected)


@pytest.mark.parametrize("config", [GPT2, GROUPED], ids=["gpt2", "grouped"])
def test_texts_are_continued_alike_with_a_cache(config):
    inputs = inputs_of("padded on the left")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected, got = (
        model_of(config, plain=plain).generate(**inputs, **options) for plain in (False, True)
    )
    assert torch.equal(expected, got)


def test_what_is_saved_does_not_name_plain_attention(tmp_path):
    model_of(GPT2, plain=True).save_pretrained(tmp_path)
    assert not any("unfused" in file.read_text() for file in tmp_path.glob("*.json"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("why", ["long rows", "no oneDNN", "attention of its own", "chosen"])
def test_other_attention_stays(why, monkeypatch):
    monkeypatch.setattr(
        pipelines.models.attention, "onednn_fp32_is_exact", lambda: why != "no oneDNN"
    )
    own = BloomConfig(vocab_size=VOCAB, n_layer=1, n_head=2, hidden_size=32)
    model = model_of(own if why == "attention of its own" else GPT2, plain=False)
    if why == "chosen":
        model.set_attn_implementation("eager")
    before = model.config._attn_implementation
    use_unfused_attention(model, SHORT + 1 if why == "long rows" else SHORT)
    assert model.config._attn_implementation == before != "unfused"
