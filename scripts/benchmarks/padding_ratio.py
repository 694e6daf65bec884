"""Positions that a model computes per token of random batches, padded or packed.

python scripts/benchmarks/padding_ratio.py CASE DATA WORK batch=ROWS [padded]
"""

import random

from ours import recipe_for
from variant import arguments, report

from pipelines.data.load import load_splits
from pipelines.data.splits import check_splits
from pipelines.models.packing import plan
from pipelines.models.tokenizers import load_tokenizer


def main() -> None:
    """Report the positions of an epoch per token."""
    case, data, work, flags = arguments()
    recipe, batch = recipe_for(case, data, work, flags), int(flags["batch"])
    task = recipe.task
    splits, labels = check_splits(task, load_splits(task.dataset), None)
    tokenizer = load_tokenizer(recipe.model, [], max_length=task.length)
    train = task.features(splits.train, tokenizer, labels, training=True)
    lengths = [len(row["input_ids"]) for row in train.dataset]
    random.Random(0).shuffle(lengths)
    positions = 0
    for start in range(0, len(lengths), batch):
        of_batch = lengths[start : start + batch]
        found = None if "padded" in flags else plan(of_batch, max(of_batch))
        positions += len(of_batch) * max(of_batch) if found is None else found[0].numel()
    report(rate=positions / sum(lengths))


if __name__ == "__main__":
    main()
