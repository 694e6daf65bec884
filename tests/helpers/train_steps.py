"""Train recipes step by step under `accelerate launch` and write the log of each.

    accelerate launch ... tests/helpers/train_steps.py RECIPES.json OUT.json

RECIPES.json maps names to recipes; OUT.json gets, for each, the logged steps.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback, set_seed

import pipelines.models.packing
from pipelines.data.load import load_splits
from pipelines.models.build import build_model
from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.recipe import Recipe
from pipelines.training.build import build_trainer
from pipelines.training.world_size import check_world_size

PLAN = pipelines.models.packing.plan


def steps(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> list[dict]:
    """Return loss and gradient norm of each step, and how many batches were packed."""
    plans = []
    pipelines.models.packing.plan = lambda *batch: plans.append(PLAN(*batch)) or plans[-1]
    set_seed(recipe.train.seed)
    splits = load_splits(recipe.task.dataset)
    labels = recipe.task.labels(splits.train)
    tokenizer = load_tokenizer(recipe.model, [], max_length=256)
    train = recipe.task.features(splits.train, tokenizer, labels, training=True)
    model = build_model(recipe, tokenizer, labels)
    trainer = build_trainer(
        recipe,
        model,
        tokenizer,
        train=train,
        scored={"eval": train},
        labels=labels,
        callbacks=callbacks,
    )
    trainer.train()
    same = {"world_size": check_world_size(), "packed": sum(each is not None for each in plans)}
    return [
        {"loss": row["loss"], "grad_norm": row["grad_norm"]} | same
        for row in trainer.state.log_history
        if "grad_norm" in row
    ]


if __name__ == "__main__":
    recipes = json.loads(Path(sys.argv[1]).read_text())
    check_world_size()
    logs = {name: steps(Recipe.from_json(json.dumps(value))) for name, value in recipes.items()}
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(logs))
