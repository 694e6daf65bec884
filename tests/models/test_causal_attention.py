"""Batches that are read without a mask give what they give with one, packed rows included."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
)

import pipelines.flow
from helpers.factories import classified
from pipelines.data.padding import pad_inputs
from pipelines.data.source import DatasetSource
from pipelines.models import causal_attention, segments
from pipelines.models.causal_attention import (
    leave_masks_out,
    reading_rows,
    use_causal_attention,
)
from pipelines.models.packing import accept_plans, plan, segment_bounds
from pipelines.models.probes import isolates_packed_rows
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Scratch, Train
from pipelines.tasks.text_classification import TextClassification

VOCAB = 97
DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= TOKENS
GPT2 = GPT2Config(**SIZES, **DROPOUT, initializer_range=0.2)
GROUPED = LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, initializer_range=0.2)
FAMILIES = pytest.mark.parametrize("config", [GPT2, GROUPED], ids=["gpt2", "grouped"])
LENGTHS = (5, 3, 20, 9, 1, 11, 2)


class Masks(TorchFunctionMode):
    """Notes the mask of every fused attention inside."""

    def __init__(self):
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is functional.scaled_dot_product_attention:
            self.found.append(kwargs.get("attn_mask"))
        return function(*args, **(kwargs or {}))


def model_of(config, *, causal, auto=AutoModelForCausalLM):
    torch.manual_seed(0)
    model = auto.from_config(type(config).from_dict(config.to_dict()))
    model.config.use_cache = False
    if causal:
        use_causal_attention(model)
        assert leave_masks_out(model) is not None
    return model


def rows_of(lengths):
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]
    return [{"input_ids": ids.tolist()} for ids in draw]


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_near(found, expected):
    for got, right in zip(found, expected, strict=True):
        assert float((got - right).norm() / right.norm()) < 1e-5


@FAMILIES
def test_rows_padded_on_the_right_need_no_mask(config):
    inputs = pad_inputs(rows_of(LENGTHS), 0, 8)
    real = inputs["attention_mask"].bool()

    def found(*, causal):
        model = model_of(config, causal=causal)
        with Masks() as masks:
            logits = model(**inputs).logits[real]
        assert all((mask is None) == causal for mask in masks.found)
        assert len(masks.found) == 2  # layers
        logits.square().sum().backward()
        return logits.detach(), gradients(model)

    assert_near(found(causal=True), found(causal=False))


@pytest.mark.parametrize("longest_masked", [0, 10**6], ids=["segments", "mask"])
@FAMILIES
def test_packed_rows_give_what_padded_ones_do(config, longest_masked, monkeypatch):
    monkeypatch.setattr(causal_attention, "LONG", longest_masked)
    inputs = pad_inputs(rows_of(LENGTHS), 0, 8)
    how = plan(LENGTHS, inputs["input_ids"].shape[1])
    assert how is not None

    def found(how, *, causal):
        model = model_of(config, causal=causal, auto=AutoModelForSequenceClassification)
        accept_plans(model.base_model)
        with Masks() as masks:
            logits = model(**inputs, plan=how).logits
        logits.square().sum().backward()
        return (logits.detach(), gradients(model)), masks.found

    expected, _ = found(None, causal=False)
    got, masks = found(how, causal=True)
    assert_near(got, expected)
    if longest_masked:
        assert [mask.dtype for mask in masks] == [torch.bool] * 2
    else:  # one call for each segment
        assert masks == [None] * (2 * (len(how[2]) - 1))


@pytest.mark.parametrize("longest_masked", [0, 10**6], ids=["segments", "mask"])
def test_a_probe_sees_packed_rows_isolated_where_no_mask_is_given(longest_masked, monkeypatch):
    monkeypatch.setattr(causal_attention, "LONG", longest_masked)
    assert isolates_packed_rows(model_of(GPT2, causal=True).base_model)


def test_bounds_are_those_of_segments_and_of_the_padding_after_them():
    # Two rows of 8: segments of 3 and 2, then 3 of padding; a segment of 8
    assert segment_bounds([[3, 2], [8]], 8).tolist() == [0, 3, 5, 8, 16]


def test_a_row_is_isolated_where_its_positions_begin_again():
    positions = torch.tensor([[0, 1, 0, 0]])  # rows of two, of one, and padding
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert causal_attention.isolating_mask(positions)[0, 0].int().tolist() == expected


@FAMILIES
def test_prompts_padded_on_the_left_keep_their_mask(config):
    place = torch.arange(12)
    mask = (place >= 12 - torch.tensor([[12], [5], [1]])).long()
    ids = torch.randint(1, VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "use_cache": True}
    expected, got = (
        model_of(config, causal=causal).generate(ids, attention_mask=mask, **options)
        for causal in (False, True)
    )
    assert torch.equal(got, expected)


def test_a_loaded_model_leaves_masks_out_only_where_rows_are_read():
    model = model_of(GPT2, causal=False)
    model.config.use_cache = True
    use_causal_attention(model)
    inputs = pad_inputs(rows_of(LENGTHS), 0, 1)
    masked = []
    for context in (reading_rows, torch.no_grad, reading_rows):
        with context(model) if context is reading_rows else context(), Masks() as masks:
            output = model(**inputs)
        masked.append(all(mask is not None for mask in masks.found))
        assert (output.past_key_values is None) == (context is reading_rows)
    assert masked == [False, True, False]
    assert model.config.use_cache


SMALL = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=4),
        Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=5.0),
        OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),  # counts positions by its mask
        FalconConfig(**SIZES, alibi=True),
    ],
    ids=["window", "softcap", "positions", "alibi"],
)
def test_a_model_that_needs_its_mask_keeps_it(config):
    model = AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    use_causal_attention(model)
    assert model.config._attn_implementation == before != causal_attention.CAUSAL
    assert leave_masks_out(model) is None


def test_what_is_saved_does_not_name_causal_attention(tmp_path):
    model_of(GPT2, causal=True).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


def test_a_kernel_that_mixes_segments_is_found_out(monkeypatch):
    device = torch.device("cpu")

    def right(query, key, value, bounds, longest, **options):
        assert longest == int(bounds.diff().max())
        return segments.each_segment(query, key, value, bounds, **options)

    def mixing(query, key, value, bounds, longest, **options):
        return segments.each_segment(query, key, value, bounds[[0, -1]], **options)

    monkeypatch.setattr(segments, "flash_attention_of_segments", right)
    assert segments._difference(device, torch.bfloat16, 16) == 0
    monkeypatch.setattr(segments, "flash_attention_of_segments", mixing)
    assert segments._difference(device, torch.bfloat16, 16) > 10 * segments.TOLERANCE


def test_full_precision_has_no_flash_attention():
    assert not segments.flash_attention_works(torch.device("meta"), torch.float32, 64)


def recipe_of(kind, tasks, checkpoint, folder):
    """Return a recipe whose training packs rows, or pads them (preferences)."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(classified(i)) for i in range(60)))
    scratch = Scratch(n_layer=1, n_head=2, n_embd=32, n_positions=256, dropout=0.0)
    task, model = {
        "head": (TextClassification(dataset=DatasetSource(path=str(file)), max_length=64), scratch),
        "documents": (replace(tasks["causal_lm"], block_size=128, packing="bfd_split"), scratch),
        "replies": (replace(tasks["instruction_tuning"], packing=True), None),
        "preferences": (tasks["preference_tuning"], None),
    }[kind]
    return Recipe(
        name=kind,
        task=task,
        model=model or Model(name_or_path=str(checkpoint)),
        lora=None if model else Lora(r=4),
        train=Train(max_steps=3, global_batch_size=8, learning_rate=1e-3, save_steps=None),
        output_dir=str(folder / kind),
    )


@pytest.mark.parametrize("kind", ["head", "documents", "replies", "preferences"])
def test_a_run_without_masks_learns_and_scores_the_same(
    kind, tasks, checkpoint, tmp_path, monkeypatch
):
    recipe = recipe_of(kind, tasks, checkpoint, tmp_path)
    expected = pipelines.flow.run(recipe)
    monkeypatch.setattr("pipelines.models.attention.onednn_fp32_is_exact", lambda: False)
    monkeypatch.setattr(
        "pipelines.models.build.choose_attention", lambda base, tokens: use_causal_attention(base)
    )
    monkeypatch.setattr(causal_attention, "LONG", 0)
    taken = []
    attend = causal_attention.attend_to_segments
    monkeypatch.setattr(
        causal_attention,
        "attend_to_segments",
        lambda *args, **options: taken.append(len(args[3])) or attend(*args, **options),
    )
    found = pipelines.flow.run(replace(recipe, output_dir=str(tmp_path / "without")))
    assert bool(taken) == (kind != "preferences")
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
