"""Rows of similar length share a batch; each row is drawn once, and scored as itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import EvalPrediction

from pipelines.data import load_splits
from pipelines.models import build_model
from pipelines.recipe import Model, Recipe, Train
from pipelines.sampling import POOL, RowOrder
from pipelines.training import build_trainer, score_of

NUM_ROWS = 4000
LENGTHS = np.random.default_rng(0).geometric(0.08, NUM_ROWS).clip(1, 128).tolist()


def order(epoch=0, seed=1, lengths=LENGTHS, batch_size=16):
    return list(
        RowOrder(NUM_ROWS, seed=seed, epoch=lambda: epoch, lengths=lengths, batch_size=batch_size)
    )


def padded_share(rows, batch_size=16):
    """Return the tokens of padded batches over those of the rows."""
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    return padded / sum(LENGTHS)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_an_epoch_draws_every_row_once_in_an_order_of_its_own(lengths):
    orders = [order(epoch, seed, lengths) for epoch, seed in ((0, 1), (1, 1), (0, 2))]
    assert all(sorted(rows) == list(range(NUM_ROWS)) for rows in orders)
    assert len({tuple(rows) for rows in orders}) == len(orders)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_order_does_not_depend_on_what_the_process_has_drawn(lengths):
    first = order(lengths=lengths)
    torch.rand(7)
    assert order(lengths=lengths) == first


def test_grouped_batches_pad_little_and_differ_between_epochs():
    assert padded_share(order(lengths=None)) > 2.5
    assert padded_share(order()) < 1.15
    together = [{frozenset(order(e)[i : i + 16]) for i in range(0, NUM_ROWS, 16)} for e in (0, 1)]
    assert len(together[0] & together[1]) < 3


def test_the_longest_row_comes_first_and_short_batches_are_not_gathered_at_the_end():
    rows = order()
    assert max(LENGTHS) in [LENGTHS[row] for row in rows[:16]]
    means = np.array([LENGTHS[row] for row in rows]).reshape(-1, 16).mean(1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.35


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 16 * 4 * POOL + 3])
def test_any_number_of_rows_is_drawn(num_rows):
    lengths = [1 + i % 7 for i in range(num_rows)]
    rows = list(RowOrder(num_rows, seed=1, epoch=lambda: 0, lengths=lengths, batch_size=16))
    assert sorted(rows) == list(range(num_rows))


def trainer_of(task, checkpoint, tokenizer, folder, **train):
    """Return a trainer, and the features that it is scored on."""
    recipe = Recipe(
        name="tiny",
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(**train),
        output_dir=str(folder),
    )
    splits = load_splits(task.dataset)
    labels = task.labels(splits.train)
    model = build_model(recipe, tokenizer, labels)
    both = [
        task.features(rows, tokenizer, labels, training=training)
        for rows, training in ((splits.train, True), (splits.held_out, False))
    ]
    trainer = build_trainer(
        recipe, model, tokenizer, train=both[0], held_out=both[1], labels=labels
    )
    return trainer, both[1], labels


@pytest.mark.parametrize("name", ["causal_lm", "text_classification", "question_answering"])
def test_a_score_is_that_of_the_rows_in_their_order(name, tasks, checkpoint, tokenizer, tmp_path):
    task = tasks[name]
    if name == "text_classification":
        task = replace(task, max_length=256)  # cut at 64 tokens all rows would be of one length
    trainer, held_out, labels = trainer_of(
        task, checkpoint, tokenizer, tmp_path, per_device_eval_batch_size=5
    )
    lengths = [len(row["input_ids"]) for row in held_out.dataset]
    assert lengths != sorted(lengths, reverse=True) or name == "causal_lm"
    collate = task.collate(tokenizer.pad_token_id)
    longest = max(lengths)
    rows, targets = [], []
    for row in held_out.dataset:
        batch = collate([row])
        targets.append(batch["labels"].numpy()[0])
        with torch.no_grad():
            out = trainer.model(**{k: v for k, v in batch.items() if k != "labels"})
        logits = (out.start_logits, out.end_logits) if "start_logits" in out else out.logits
        if name == "causal_lm":
            ids = batch["input_ids"]
            logits = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")[None]
        found = task.reduce_logits(logits, batch["labels"])[0].numpy()
        if name == "question_answering":
            found = np.pad(found, ((0, longest - len(found)), (0, 0)))
        rows.append(found)
    if name == "causal_lm":
        targets = np.zeros((len(rows), 1))
    alone = task.score(EvalPrediction(np.stack(rows), np.stack(targets)), held_out, labels)
    metrics = score_of(trainer.evaluate())
    assert metrics[alone.primary] == pytest.approx(alone.metrics[alone.primary], rel=1e-5)
    assert metrics["confidence_interval"] == pytest.approx(list(alone.interval), rel=1e-4)


def test_training_batches_pad_less_than_random_ones(tasks, checkpoint, tokenizer, tmp_path):
    padded = {}
    for strategy in ("group_by_length", "random"):
        trainer, _, _ = trainer_of(
            tasks["question_answering"],
            checkpoint,
            tokenizer,
            tmp_path,
            train_sampling_strategy=strategy,
            global_batch_size=8,
        )
        sizes = [batch["input_ids"].numel() for batch in trainer.get_train_dataloader()]
        padded[strategy] = sum(sizes)
    assert padded["group_by_length"] < 0.97 * padded["random"]
