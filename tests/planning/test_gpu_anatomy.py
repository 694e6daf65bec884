"""What a block is counted to save for its backward pass on a GPU, by method."""

import pytest

from helpers.factories import make_tasks, method
from pipelines.planning.gpus import dissect
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model

WIDTH, HEADS, RANK = 32, 2, 4
STATES = 2 * 4 * WIDTH + 4 * 4
"""The inputs of two norms in fp32, a mean and a deviation of each."""
PROJECTED = 2 * (WIDTH + WIDTH + 4 * WIDTH)
"""The inputs of c_attn, c_fc and the second c_proj in bfloat16; the first shares attention's."""


@pytest.fixture
def anatomy_of(helpdesk, checkpoint, tmp_path):
    def of(name):
        recipe = Recipe(
            name="counted",
            task=make_tasks(helpdesk)["text_classification"],
            model=Model(name_or_path=str(checkpoint)),
            output_dir=str(tmp_path / "run"),
            **method(name),
        )
        return dissect(recipe, ("a", "b"))

    return of


def test_a_block_saves_no_attention_probabilities_and_its_weights_in_bfloat16(anatomy_of):
    found = anatomy_of("full")
    # attention: query, value and output in bfloat16, all three projections as one, sums in fp32
    attention = 2 * (3 * WIDTH + 3 * WIDTH) + 4 * HEADS
    gelu = 2 * 4 * WIDTH
    assert found.block_per_token == STATES + PROJECTED + attention + gelu
    assert found.block_casts == 2 * 12 * WIDTH**2


@pytest.mark.parametrize("name", ["8bit", "4bit"])
def test_of_a_quantised_block_the_adapter_alone_is_converted(name, anatomy_of):
    found = anatomy_of(name)
    assert found.block_casts == 2 * found.block_trained


def test_a_block_in_4_bits_multiplies_in_bfloat16_and_gives_its_outputs_in_fp32(anatomy_of):
    found = anatomy_of("4bit")
    # attention: query, key, value and output; the adapter of its c_proj has an input of its own
    attention = 2 * 4 * WIDTH + 4 * HEADS + 2 * WIDTH
    gelu = 4 * 4 * WIDTH
    adapters = 4 * 2 * RANK
    assert found.block_per_token == STATES + PROJECTED + attention + gelu + adapters
