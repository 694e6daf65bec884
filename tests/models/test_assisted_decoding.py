"""Proposed tokens make generation faster, and never another text."""

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import RecipeError
from pipelines.models.assisted_decoding import Assistance, check_assistant
from pipelines.models.generation import continue_prompts
from pipelines.recipe.generation import check_greedy
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.generation import Generation

TASK = CausalLM(dataset=DatasetSource(path="nowhere"))
TEXTS = ("My order is late. My order is late. My order", "Hello", "The hinge is broken. " * 6)


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def other(tokenizer):
    """A model of other weights, one layer deep, which seldom proposes what is written."""
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_layer=1, n_head=2, n_embd=16)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def prompts(tokenizer):
    return TASK.prompts(Examples([{"text": text} for text in TEXTS], "texts"), tokenizer)


def num_passes(model, write):
    """Return what a call writes, and the forward passes that it takes."""
    count = 0

    def counted(*_):
        nonlocal count
        count += 1

    hook = model.register_forward_pre_hook(counted)
    try:
        return write(), count
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "options",
    [
        Generation(max_new_tokens=40),
        Generation(max_new_tokens=40, repetition_penalty=1.3),
        Generation(max_new_tokens=40, no_repeat_ngram_size=3),
    ],
)
def test_assisted_texts_are_the_greedy_ones(model, other, tokenizer, prompts, options):
    def write(**assistance):
        given = Assistance(**assistance)
        return continue_prompts(model, tokenizer, prompts, options, batch_size=1, assistance=given)

    expected, num_greedy = num_passes(model, write)
    for assistance in ({"assistant": other}, {"prompt_lookup_num_tokens": 8}):
        found, num_assisted = num_passes(model, lambda given=assistance: write(**given))
        assert found == expected
        assert num_assisted <= num_greedy
    twin = AutoModelForCausalLM.from_pretrained(model.name_or_path).eval()
    found, num_assisted = num_passes(model, lambda: write(assistant=twin))
    assert found == expected
    assert num_assisted < num_greedy  # all proposals of a twin are right


def test_repeated_text_needs_fewer_passes_by_prompt_lookup(model, tokenizer, prompts):
    options = Generation(max_new_tokens=40)  # the model of random weights repeats itself

    def write(lookup):
        given = Assistance(prompt_lookup_num_tokens=lookup)
        return continue_prompts(model, tokenizer, prompts, options, batch_size=1, assistance=given)

    (expected, num_greedy), (found, num_assisted) = (
        num_passes(model, lambda lookup=lookup: write(lookup)) for lookup in (None, 8)
    )
    assert found == expected
    assert num_assisted < num_greedy


def test_texts_that_outgrow_the_positions_are_refused(model, tokenizer):
    """transformers would read proposals beyond the last position, an IndexError."""
    short = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_layer=1, n_head=1, n_embd=8)
    assistant = Assistance(GPT2LMHeadModel(short))
    lookup = Assistance(prompt_lookup_num_tokens=8)
    prompt = [5] * 20
    for assistance, fits, name in ((assistant, 44, "assistant"), (lookup, 228, "prompt_lookup")):
        texts = continue_prompts(
            model, tokenizer, [prompt], Generation(max_new_tokens=fits), assistance=assistance
        )
        assert len(texts) == 1  # 20 + 44 = 64 positions, and 20 + 228 + 8 = 256
        with pytest.raises(RecipeError, match=f"{name}.*: a text may come to"):
            continue_prompts(
                model,
                tokenizer,
                [prompt],
                Generation(max_new_tokens=fits + 1),
                assistance=assistance,
            )


def test_an_assistant_with_other_tokens_is_refused(model, tokenizer, other):
    check_assistant(model, tokenizer, other, tokenizer)
    larger = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer) + 8, n_positions=64, n_layer=1, n_head=1, n_embd=8)
    )
    with pytest.raises(RecipeError, match="assistant: has another tokenizer: 400 tokens for 408"):
        check_assistant(model, tokenizer, larger, tokenizer)

    class Renamed:
        def __len__(self):
            return len(tokenizer)

        def get_vocab(self):
            return {name + "_": number for name, number in tokenizer.get_vocab().items()}

    with pytest.raises(RecipeError, match="assistant: has another tokenizer"):
        check_assistant(model, tokenizer, other, Renamed())


@pytest.mark.parametrize(
    ("options", "num_at_once", "message"),
    [
        ({"do_sample": True}, 1, "--do-sample would draw other tokens. Use --no-do-sample."),
        ({"num_beams": 2}, 1, "a beam search checks no proposals. Use --num-beams 1."),
        ({}, 16, "texts are written one at a time. Use --batch-size 1."),
    ],
)
def test_what_is_not_greedy_or_not_one_text_at_a_time_is_refused(options, num_at_once, message):
    check_greedy("assistant", Generation(), num_at_once=1)
    with pytest.raises(RecipeError) as refused:
        check_greedy("assistant", Generation(**options), num_at_once=num_at_once)
    assert str(refused.value) == f"assistant: {message}"
