"""The batches of a run, and the rows that a rehearsal takes."""

from dataclasses import replace

import pytest

from helpers.factories import make_tasks
from pipelines.data.rows import Examples
from pipelines.planning.batches import batch_tokens, batches_of, longest_examples
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.tasks.base import Features


@pytest.fixture
def recipe(helpdesk):
    task = make_tasks(helpdesk)["text_classification"]
    train = Train(global_batch_size=6, per_device_train_batch_size=3, max_steps=4)
    return Recipe(name="batches", task=task, model=Model(name_or_path="gpt2"), train=train)


def rows_of(lengths):
    return Features([{"input_ids": [1] * length} for length in lengths], {}, num_rows=len(lengths))


def test_the_largest_batch_of_the_run_is_found(recipe):
    found = batches_of(recipe, rows_of(range(1, 13)), 1)
    assert (found.rows, found.accumulation, found.steps) == (3, 2, 4)
    assert found.longest == 12
    # 4 steps of 6 rows are two epochs of 12: each row twice, in 8 batches
    assert found.mean_tokens == 2 * sum(range(1, 13)) / 8
    assert found.max_tokens == sum(len(row["input_ids"]) for row in found.largest)
    assert found.max_tokens > found.mean_tokens


def test_two_processes_share_a_step(recipe):
    assert batches_of(recipe, rows_of([5] * 12), 2).accumulation == 1


def test_heads_are_packed_and_others_padded(recipe, helpdesk):
    tasks = make_tasks(helpdesk)
    assert batch_tokens(tasks["text_classification"], [2, 3, 10]) == 15
    assert batch_tokens(tasks["instruction_tuning"], [2, 3, 10]) == 30


def test_the_longest_rows_are_chosen_within_a_number_of_tokens(recipe):
    rows = [{"text": "x" * size} for size in (40, 400, 4, 120)]
    examples = Examples(rows, "rows.jsonl")
    picked = longest_examples(recipe.task, examples, 3, 10_000)
    assert [len(row["text"]) for row in picked.rows] == [400, 120, 40]
    # a row of 400 characters has at most 64 tokens here: two of them have 128
    assert len(longest_examples(recipe.task, examples, 4, 140).rows) == 2
    assert picked.locate(0) == "rows.jsonl row 1"


def test_a_long_document_is_cut(helpdesk):
    task = replace(make_tasks(helpdesk)["causal_lm"], block_size=16)
    picked = longest_examples(task, Examples([{"text": "x" * 9000}], "a.txt"), 32, 100)
    assert [len(row["text"]) for row in picked.rows] == [400]
