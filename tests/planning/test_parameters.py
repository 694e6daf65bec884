"""Parameters are counted by part, without the weights of the model."""

from dataclasses import replace

import pytest

from helpers.factories import make_tasks, method
from pipelines.planning.parameters import count_parameters, empty_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model

LABELS = ("a", "b", "c")
VOCABULARY, WIDTH, LAYERS, RANK = 400, 32, 2, 4
EMBEDDINGS = (VOCABULARY + 256) * WIDTH  # of tokens and of positions
ATTENTION = LAYERS * (WIDTH * 3 * WIDTH + 3 * WIDTH + WIDTH * WIDTH + WIDTH)
MLP = LAYERS * (WIDTH * 4 * WIDTH + 4 * WIDTH + 4 * WIDTH * WIDTH + WIDTH)
NORMS = (2 * LAYERS + 1) * 2 * WIDTH  # two in a block and one at the end: weight and bias
ADAPTER = LAYERS * RANK * ((1 + 3) + (1 + 1) + (1 + 4) + (4 + 1)) * WIDTH  # inputs and outputs


@pytest.fixture
def recipe(helpdesk, checkpoint):
    task = make_tasks(helpdesk)["text_classification"]
    return Recipe(name="counted", task=task, model=Model(name_or_path=str(checkpoint)))


def test_full_fine_tuning_trains_every_part(recipe, tokenizer):
    assert len(tokenizer) == VOCABULARY
    counts = count_parameters(empty_model(recipe, tokenizer, LABELS))
    assert counts.trainable == {
        "embeddings": EMBEDDINGS,
        "attention": ATTENTION,
        "mlp": MLP,
        "norms": NORMS,
        "head": 3 * WIDTH,
        "adapter": 0,
    }
    assert not any(counts.frozen.values())
    assert (counts.num_layers, counts.vocabulary, counts.width) == (LAYERS, VOCABULARY, WIDTH)
    assert counts.in_blocks == ATTENTION + MLP + LAYERS * 4 * WIDTH


@pytest.mark.parametrize("name", ["lora", "8bit", "4bit"])
def test_an_adapter_trains_itself_and_the_head(name, recipe, tokenizer):
    counts = count_parameters(empty_model(replace(recipe, **method(name)), tokenizer, LABELS))
    assert counts.num_trainable == ADAPTER + 3 * WIDTH
    assert counts.trainable["adapter"] == ADAPTER
    assert counts.frozen["mlp"] == MLP  # of a quantised base, before it is quantised
    assert counts.base == EMBEDDINGS + ATTENTION + MLP + NORMS + 3 * WIDTH


def test_a_tied_head_counts_as_embeddings(recipe, helpdesk, tokenizer):
    recipe = replace(recipe, task=make_tasks(helpdesk)["causal_lm"])
    counts = count_parameters(empty_model(recipe, tokenizer, ()))
    assert counts.total == EMBEDDINGS + ATTENTION + MLP + NORMS
    assert counts.trainable["head"] == 0
