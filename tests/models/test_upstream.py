"""What pipelines/models/upstream.py relies on is still so in the libraries."""

import inspect

import pytest
import safetensors
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Trainer,
    ViTConfig,
    modeling_utils,
)

from pipelines.models import upstream

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 64, "vocab_size": 97, "n_positions": 16}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0))


def test_auto_classes_say_which_families_they_have():
    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        assert upstream.has_head_for(auto.__name__, GPT2Config())
    assert not upstream.has_head_for("AutoModelForCausalLM", ViTConfig())
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForCausalLM.from_config(ViTConfig())


def test_flash_attention_takes_segments_and_dropout_and_has_gradients():
    """On the meta device: the kernel itself needs a GPU."""
    options = {"dtype": torch.bfloat16, "device": "meta", "requires_grad": True}
    tensors = [torch.empty(32, 3, 16, **options) for _ in range(3)]
    bounds = torch.tensor([0, 5, 16, 32], dtype=torch.int32, device="meta")
    found = upstream.flash_attention_of_segments(*tensors, bounds, 16, scaling=0.3, dropout=0.1)
    assert (found.shape, found.dtype) == ((32, 3, 16), torch.bfloat16)
    gradients = torch.autograd.grad(found.sum(), tensors)
    assert [each.shape for each in gradients] == [(32, 3, 16)] * 3


def test_flash_attention_has_its_arguments_in_this_order():
    kernel = torch.ops.aten._flash_attention_forward.default
    names = [argument.name for argument in kernel._schema.arguments]
    assert names[:10] == [
        *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
        *("dropout_p", "is_causal", "return_debug_mask"),
    ]


def test_the_name_of_the_attention_follows_what_is_set(model):
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert upstream.attention_of(model) == name


def test_the_trainer_counts_labels_by_the_loss_type(model, tmp_path):
    from transformers import TrainingArguments

    assert model.loss_type is None  # or nothing would be needed
    batch = {"labels": torch.tensor([[5, 6, 7], [8, 9, -100]])}

    def counted():
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        trainer = Trainer(model=model, args=arguments)
        return int(trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))[1])

    assert counted() == 5
    upstream.count_shifted_labels(model)
    assert counted() == 3  # 6, 7 and 9 follow a token


def test_a_replaced_forward_is_what_a_call_and_a_compiled_call_run(model):
    upstream.replace_forward(model, lambda model, ids: ids + model.config.n_layer)
    ids = torch.tensor([1])
    assert int(model(ids)) == 2
    assert int(torch.compile(model, backend="eager")(ids)) == 2


def test_tensors_of_a_checkpoint_are_read_one_by_one(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    assert modeling_utils.safe_open is safetensors.safe_open
    backends = []

    def noting(file, **options):
        backends.append(options.get("backend"))
        return safetensors.safe_open(file, **options)

    monkeypatch.setattr(modeling_utils, "safe_open", noting)
    with upstream.tensors_read_singly():
        loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert backends
    assert set(backends) == {"pread"}
    assert modeling_utils.safe_open is noting
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_bitsandbytes_repacks_4bit_weights_only_where_its_layer_allows_it():
    assert hasattr(Linear4bit(64, 64), "support_avx512bf16_for_cpu")
    uses = inspect.getsource(Linear4bit.forward)
    assert "self.support_avx512bf16_for_cpu" in uses
    layers = torch.nn.Sequential(Linear4bit(64, 64), torch.nn.Linear(2, 2))
    layers[0].support_avx512bf16_for_cpu = True
    upstream.keep_4bit_layout(layers)
    assert layers[0].support_avx512bf16_for_cpu is False


def test_outliers_of_8bit_layers_are_found_by_the_threshold_of_their_state():
    torch.manual_seed(0)
    layer = Linear8bitLt(64, 64, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict(torch.nn.Linear(64, 64).state_dict())
    layers = torch.nn.Sequential(layer.to("cpu")).eval()
    states = torch.randn(2, 64)
    other = states.clone()
    other[1, 7] = 50.0  # an outlier of the second token
    with torch.no_grad():
        assert not torch.equal(layers(states)[0], layers(other)[0])
        with upstream.without_8bit_outliers(layers):
            assert layer.state.threshold == 0.0
            assert torch.equal(layers(states)[0], layers(other)[0])
    assert layer.state.threshold == 6.0


def test_an_8bit_layer_keeps_its_outlier_columns_and_forgets_them_with_the_same_gradients():
    torch.manual_seed(0)
    layer = Linear8bitLt(64, 64, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict(torch.nn.Linear(64, 64).state_dict())
    layers = torch.nn.Sequential(layer.to("cpu")).eval()
    states = torch.randn(2, 64)
    states[1, 7] = 50.0

    def gradient():
        inputs = states.clone().requires_grad_()
        outputs = layers(inputs)
        kept = layer.state.idx
        outputs.sum().backward()
        return kept, inputs.grad

    kept, before = gradient()
    assert kept.tolist() == [7]
    upstream.forget_outlier_columns(layers)
    kept, after = gradient()
    assert kept is None
    assert torch.equal(before, after)


def test_transformers_still_has_what_is_patched():
    assert "safe_open" in inspect.getsource(modeling_utils)
    assert hasattr(PreTrainedModel, "set_attn_implementation")
