"""Compiled blocks learn the same, are compiled a few times, and keep the names of weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
)

from pipelines.data.padding import pad_inputs
from pipelines.errors import RecipeError
from pipelines.models.causal_attention import leave_masks_out, use_causal_attention
from pipelines.models.chunked_loss import use_chunked_loss
from pipelines.models.compiling import compile_blocks, not_compiled
from pipelines.models.packing import accept_plans, plan

VOCAB = 97
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GPT2 = GPT2Config(**SIZES, **TOKENS, **DROPOUT, use_cache=False, initializer_range=0.2)
GROUPED = LlamaConfig(
    **SIZES, **TOKENS, intermediate_size=48, num_key_value_heads=2, use_cache=False
)


class Compilations:
    """A compiler that changes nothing, and counts."""

    def __init__(self):
        self.number = 0

    def __call__(self, graph, inputs):
        self.number += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what other tests compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_of(config, *, lora=False):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    use_causal_attention(model)
    leave_masks_out(model)
    use_chunked_loss(model)
    if lora:
        target = "c_attn" if config is GPT2 else "q_proj"
        model = get_peft_model(model, LoraConfig(r=2, target_modules=[target]))
    return model


def batches(num_rows, lengths):
    generator = torch.Generator().manual_seed(1)
    for length in lengths:
        rows = [
            {"input_ids": torch.randint(1, VOCAB, (n,), generator=generator).tolist()}
            for n in range(length, length - num_rows, -1)
        ]
        inputs = pad_inputs(rows, 0, 1)
        inputs["targets"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        yield inputs


def steps(model, lengths):
    """Return losses and gradients of training, with an evaluation and a short last batch."""
    found = []
    every = [*batches(4, lengths), *batches(2, [9])]
    for number, inputs in enumerate(every):
        model.zero_grad()
        loss = model(**inputs).losses
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found += [loss.detach(), torch.cat(gradients)]
        if number % 4 == 1 or inputs is every[-1]:
            model.eval()
            with torch.no_grad():
                found.append(model(**inputs).losses)
            model.train()
    return found


@pytest.mark.parametrize(
    ("config", "lora"),
    [(GPT2, False), (GPT2, True), (GROUPED, False)],
    ids=["gpt2", "gpt2-lora", "grouped"],
)
def test_batches_of_many_lengths_are_compiled_a_few_times_and_learn_the_same(config, lora):
    lengths = [11, 14, 9, 24, 17, 30]
    expected = steps(model_of(config, lora=lora), lengths)
    model = model_of(config, lora=lora)
    names = list(model.state_dict())
    compilations = Compilations()
    compile_blocks(model, one_length=False, backend=compilations)
    found = steps(model, lengths)
    for got, right in zip(found, expected, strict=True):
        assert float((got - right).norm() / right.norm()) < 1e-5
    # Training and evaluation; in training an adapter's first block gets no gradient for its input
    assert compilations.number == (3 if lora else 2)
    before = compilations.number
    steps(model, [31, 33, 32, 20])
    assert compilations.number == before
    assert list(model.state_dict()) == names


def test_packed_rows_are_compiled_a_few_times():
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2)
    use_causal_attention(model)
    leave_masks_out(model)
    accept_plans(model.base_model)
    compilations = Compilations()
    compile_blocks(model, one_length=False, backend=compilations)
    for number in (5, 29, 11, 17, 23):
        lengths = (number, 3, number // 2, 1, 2)
        ids = torch.ones(5, number, dtype=torch.long)
        mask = (torch.arange(number) < torch.tensor(lengths)[:, None]).long()
        how = plan(lengths, number)
        assert how is not None
        model(input_ids=ids, attention_mask=mask, plan=how).logits.sum().backward()
    assert compilations.number == 2  # for one packed row, and for several


def test_batches_of_one_shape_are_compiled_for_it_and_another_for_all():
    compilations, model = Compilations(), model_of(GPT2)
    compile_blocks(model, one_length=True, backend=compilations)
    numbers = []
    for length in (16, 16, 24, 31, 40):
        model(**next(batches(4, [length]))).losses.backward()
        numbers.append(compilations.number)
    assert numbers == [1, 1, 2, 2, 2]


def test_a_model_without_blocks_cannot_be_compiled():
    config = GPT2Config(**SIZES | {"num_hidden_layers": 0}, **TOKENS)
    with pytest.raises(RecipeError, match=r"train\.torch_compile: gpt2 has no blocks"):
        compile_blocks(AutoModelForCausalLM.from_config(config), one_length=True)


def test_generation_is_not_compiled():
    model = model_of(GPT2)
    compilations = Compilations()
    compile_blocks(model, one_length=False, backend=compilations)
    with not_compiled():
        ids = torch.ones(2, 4, dtype=torch.long)
        model.generate(ids, max_new_tokens=4, use_cache=True, pad_token_id=0)
    assert compilations.number == 0
    model(torch.ones(2, 4, dtype=torch.long))
    assert compilations.number >= 1
