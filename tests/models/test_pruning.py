"""What is pruned is what weighs least; what is left computes as before where nothing was lost."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from pipelines.errors import RecipeError
from pipelines.models.pruning import pruned, sparsify

LAYERS, HEADS, WIDTH, VOCAB = 2, 4, 32, 97
SIZE, NEURONS = WIDTH // HEADS, 4 * WIDTH
KINDS = (GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2ForQuestionAnswering)


def made(kind=GPT2LMHeadModel):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        vocab_size=VOCAB,
        n_positions=16,
        initializer_range=0.3,
        num_labels=3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return kind(config).eval()


def ids():
    return torch.randint(1, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_that_write_nothing_are_removed_and_nothing_changes(kind):
    model = made(kind)
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h):
            block.mlp.c_proj.weight[number::2] = 0.0  # the even ones, then the odd ones
        smaller = pruned(model, neurons=0.5)
        torch.testing.assert_close(smaller(ids())[0], model(ids())[0], rtol=1e-6, atol=1e-6)
    assert smaller.config.n_inner == NEURONS // 2
    assert smaller.transformer.h[0].mlp.c_fc.weight.shape == (WIDTH, NEURONS // 2)
    assert model.config.n_inner is None  # the one that was given is as it was


def test_a_head_and_the_channels_that_weigh_nothing_are_removed():
    """Layer norm divides by the width: without a quarter of it, its scale is that of the rest."""
    model = made()
    gone = torch.arange(0, WIDTH, 4)  # a quarter of the channels: as wide as a head
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h):
            head = slice((number + 1) * SIZE, (number + 2) * SIZE)
            block.attn.c_proj.weight[head] = 0.0
            for part in range(3):
                columns = slice(part * WIDTH + head.start, part * WIDTH + head.stop)
                block.attn.c_attn.weight[:, columns] = 0.0
            for norm in (block.ln_1, block.ln_2):
                norm.weight[gone] = norm.bias[gone] = 0.0
            for written in (block.attn.c_proj, block.mlp.c_proj):
                written.weight[:, gone] = 0.0
                written.bias[gone] = 0.0
        for embedding in (model.transformer.wte, model.transformer.wpe):
            embedding.weight[:, gone] = 0.0
        smaller = pruned(model, heads=0.25)
        kept = [channel for channel in range(WIDTH) if channel % 4]
        for name, layer in (("wte", smaller.transformer.wte), ("wpe", smaller.transformer.wpe)):
            expected = getattr(model.transformer, name).weight[:, kept]
            assert torch.equal(layer.weight, expected)
        block, before = smaller.transformer.h[0].attn, model.transformer.h[0].attn
        rows = [row for row in range(WIDTH) if not SIZE <= row < 2 * SIZE]
        assert torch.equal(block.c_proj.weight, before.c_proj.weight[rows][:, kept])
        columns = [part * WIDTH + row for part in range(3) for row in rows]
        assert torch.equal(block.c_attn.weight, before.c_attn.weight[kept][:, columns])
    assert (smaller.config.n_head, smaller.config.n_embd) == (3, 24)
    assert smaller.config.n_inner == NEURONS
    assert smaller.lm_head.weight is smaller.transformer.wte.weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_saves_and_loads_by_transformers_alone(kind, tmp_path):
    smaller = pruned(made(kind), heads=0.5, neurons=0.25)
    smaller.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(ids())[0], smaller(ids())[0])


def test_sparsity_zeroes_the_smallest_weights_of_each_matrix_inside_the_blocks():
    model = made()
    embeddings = model.transformer.wte.weight.clone()
    before = model.transformer.h[1].mlp.c_fc.weight.clone()
    sparsify(model, 0.3)
    after = model.transformer.h[1].mlp.c_fc.weight
    assert int((after == 0).sum()) == round(0.3 * before.numel())
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()
    assert torch.equal(after[after != 0], before[after != 0])
    assert torch.equal(model.transformer.wte.weight, embeddings)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"heads": 0.1}, "prune_heads"),
        ({"heads": 0.9}, "prune_heads"),
        ({"neurons": 0.001}, "prune_neurons"),
    ],
)
def test_fractions_that_remove_nothing_or_all_are_refused(options, field):
    with pytest.raises(RecipeError) as error:
        pruned(made(), **options)
    assert [problem.path for problem in error.value.problems] == [field]


def test_another_family_is_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, vocab_size=97))
    with pytest.raises(RecipeError, match="only GPT-2 can be pruned by heads and neurons"):
        pruned(model, heads=0.5)
    sparsify(model, 0.5)
    assert (model.model.layers[0].mlp.up_proj.weight == 0).float().mean() == 0.5
