"""What a DataLoader hands to its workers survives pickling, so that workers can be spawned."""

import pickle
from dataclasses import replace

import pytest
import torch

from pipelines.data.load import load_splits
from pipelines.data.splits import check_splits

TASKS = (
    "causal_lm",
    "text_classification",
    "question_answering",
    "instruction_tuning",
    "preference_tuning",
)


def unpickled(value):
    """Return a value as a spawned worker gets it."""
    return pickle.loads(pickle.dumps(value))


def assert_same_batches(batch, other):
    """Compare two batches, names and tensors."""
    assert batch.keys() == other.keys()
    for name, tensor in batch.items():
        assert torch.equal(tensor, other[name]), name


def features_of(task, tokenizer):
    """Return the features of the training rows."""
    splits, labels = check_splits(task, load_splits(task.dataset))
    return task.features(splits.train, tokenizer, labels, training=True)


@pytest.mark.parametrize("name", TASKS)
def test_an_unpickled_collator_makes_the_same_batches(name, tasks, tokenizer):
    task = tasks[name]
    rows = features_of(task, tokenizer).dataset[:5]
    for collate in (
        task.collate(tokenizer.eos_token_id),
        task.collate(tokenizer.eos_token_id, task.pad_to_multiple_of),
    ):
        assert_same_batches(unpickled(collate)(rows), collate(rows))


def test_an_unpickled_collator_keeps_packed_documents_isolated(tasks, tokenizer):
    task = replace(tasks["causal_lm"], packing="bfd_split")
    rows = features_of(task, tokenizer).dataset[:3]
    collate = task.collate(tokenizer.eos_token_id)
    assert "position_ids" in collate(rows)
    assert_same_batches(unpickled(collate)(rows), collate(rows))


@pytest.mark.parametrize("name", TASKS)
def test_unpickled_features_name_the_same_rows(name, tasks, tokenizer):
    features = features_of(tasks[name], tokenizer)
    copy = unpickled(features)
    for index in range(len(features.dataset)):
        assert copy.locate(index) == features.locate(index)


def test_windows_are_named_after_the_row_of_their_question(tasks, tokenizer):
    task = replace(tasks["question_answering"], max_length=32, stride=4)
    train = load_splits(task.dataset).train
    to_score = task.features(train, tokenizer, (), training=False)
    to_train = task.features(train, tokenizer, (), training=True)
    _, windows = to_score.context
    assert len(windows) == len(to_train.dataset) > len(train.rows)
    for index, window in enumerate(windows):
        assert to_score.locate(index) == train.locate(window.question) == to_train.locate(index)


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split"])
def test_an_unpickled_stream_yields_the_same_blocks(packing, tasks, tokenizer):
    task = replace(tasks["causal_lm"], packing=packing)
    task = replace(task, dataset=replace(task.dataset, streaming=True, max_eval_rows=4))
    stream = features_of(task, tokenizer).dataset
    blocks, copies = list(stream), list(unpickled(stream))
    assert blocks
    assert [list(block["input_ids"]) for block in copies] == [
        list(block["input_ids"]) for block in blocks
    ]
