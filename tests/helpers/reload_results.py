"""Load results in a new process and save the first logits and the labels of each.

python tests/helpers/reload_results.py OUT.pt FOLDER...
"""

import sys

import torch

from helpers.factories import first_logits
from pipelines.data.load import load_splits
from pipelines.hub.load import load_result

if __name__ == "__main__":
    reloaded = {}
    for folder in sys.argv[2:]:
        loaded = load_result(folder)
        task = loaded.recipe.task
        held_out = load_splits(task.dataset).held_out
        rows = task.features(held_out, loaded.tokenizer, loaded.labels, training=False).dataset
        logits = first_logits(task, loaded.model, loaded.tokenizer, rows[:4])
        reloaded[folder] = (logits, loaded.labels)
    torch.save(reloaded, sys.argv[1])
