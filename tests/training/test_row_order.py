"""Each row is drawn once an epoch, and scored as itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, RandomSampler
from transformers import EvalPrediction

from pipelines.data.load import load_splits
from pipelines.models.build import build_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.training.build import build_trainer
from pipelines.training.row_order import RowOrder

NUM_ROWS = 4000


def order(epoch=0, seed=1):
    return list(RowOrder(NUM_ROWS, seed=seed, epoch=lambda: epoch))


def test_an_epoch_draws_every_row_once_in_an_order_of_its_own():
    orders = [order(epoch, seed) for epoch, seed in ((0, 1), (1, 1), (0, 2))]
    assert all(sorted(rows) == list(range(NUM_ROWS)) for rows in orders)
    assert len({tuple(rows) for rows in orders}) == len(orders)


def test_the_order_does_not_depend_on_what_the_process_has_drawn():
    first = order()
    torch.rand(7)
    assert order() == first


class Told(RandomSampler):
    """A sampler that learns the epoch as accelerate's own does."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_accelerates_sampler_would_repeat_orders_and_lose_the_epoch_on_resume():
    """Why there is a RowOrder: it can go once this fails and old seeds need not be kept."""
    orders = []
    for seed, epoch in ((1, 1), (2, 0)):
        sampler = SeedableRandomSampler(
            range(NUM_ROWS), data_seed=seed, generator=torch.Generator()
        )
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    for num_processes in (1, 2):
        told = Told(range(16))
        loader = prepare_data_loader(
            DataLoader(range(16), batch_size=2, sampler=told),
            num_processes=num_processes,
            process_index=0,
        )
        skip_first_batches(loader, 1).set_epoch(1)
        assert told.epoch == (1 if num_processes == 1 else 0)


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
        recipe, model, tokenizer, train=both[0], scored={"eval": both[1]}, labels=labels
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
            following = batch["labels"][0, 1:]  # of padding none
            logits = F.cross_entropy(logits[0, :-1], following, reduction="none")[None]
        found = task.reduce_logits(logits, batch["labels"])[0].numpy()
        if name == "question_answering":
            found = np.pad(found, ((0, longest - len(found)), (0, 0)))
        rows.append(found)
    if name == "causal_lm":
        targets = np.zeros((len(rows), 1))
    alone = task.score(EvalPrediction(np.stack(rows), np.stack(targets)), held_out, labels)
    metrics = trainer.score("eval").metrics
    assert metrics[alone.primary] == pytest.approx(alone.metrics[alone.primary], rel=1e-5)
    assert metrics["confidence_interval"] == pytest.approx(list(alone.interval), rel=1e-4)
