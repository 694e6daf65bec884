"""Muon and AdamW as one optimizer, and when it is refused."""

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.training.optimizers import MuonWithAdamW

TRAIN = Train(learning_rate=1e-2, weight_decay=0.1, optim="muon")
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16, "vocab_size": 50}


def model_of(kind):
    torch.manual_seed(0)
    config = GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return kind(config).eval()  # without dropout


def step(model, optimizer):
    optimizer.zero_grad()
    ids = torch.arange(16)[None]
    model(ids).logits.square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest(kind):
    model = model_of(kind)
    muon, adamw = MuonWithAdamW(model, train=TRAIN).parts
    names = {id(p): n for n, p in model.named_parameters()}
    taken = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    expected = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert taken == [f"transformer.h.{i}.{name}.weight" for i in (0, 1) for name in expected]
    decayed, undecayed = [[names[id(p)] for p in g["params"]] for g in adamw.param_groups]
    assert "transformer.wte.weight" in decayed
    assert adamw.param_groups[1]["weight_decay"] == 0
    assert all("ln_" in name or name.endswith("bias") for name in undecayed)
    assert sorted([*taken, *decayed, *undecayed]) == sorted(names.values())


def test_both_parts_move_as_they_do_alone():
    model, alone = model_of(GPT2LMHeadModel), model_of(GPT2LMHeadModel)
    optimizer = MuonWithAdamW(model, train=TRAIN)
    of_alone = MuonWithAdamW(alone, train=TRAIN).parts
    for _ in range(3):
        step(model, optimizer)
        alone.zero_grad()
        alone(torch.arange(16)[None]).logits.square().mean().backward()
        for part in of_alone:
            part.step()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_schedule_steers_both_parts_also_after_a_state_was_loaded():
    model = model_of(GPT2LMHeadModel)
    optimizer = MuonWithAdamW(model, train=TRAIN)
    step(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    step(model, optimizer)
    schedule.step()
    rates = [group["lr"] for part in optimizer.parts for group in part.param_groups]
    assert rates == [5e-3, 5e-3, 5e-3]


def test_muon_is_for_weights_from_scratch(tasks):
    with pytest.raises(RecipeError, match="'muon' is for weights from scratch"):
        Recipe(name="x", task=tasks["causal_lm"], model=Model(name_or_path="gpt2"), train=TRAIN)
