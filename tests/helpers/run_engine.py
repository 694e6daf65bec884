"""Do several runs by the engine that `accelerate launch` requests, FSDP2 on a CPU too.

    ... tests/helpers/run_engine.py RUNS.json

RUNS.json is a list of runs: a recipe in JSON, and calls of tests/helpers/callbacks.py. A run that a
callback ends is resumed; of one that stops at a gradient it is said whether weights have changed.
"""

import json
import os
import sys
from pathlib import Path

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    import helpers.fsdp_on_cpu  # noqa: F401

import torch
from transformers import TrainerCallback

from helpers import callbacks
from pipelines.errors import EndedEarly, NonFiniteError, RecipeError
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.terminal import report_errors


def part_of(parameter):
    """Return the part of a parameter that this process has: by ZeRO-3, by FSDP2, or all."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.detach()
    return parameter.to_local().detach() if hasattr(parameter, "to_local") else parameter.detach()


class Watch(TrainerCallback):
    """Keeps the weights that this process has before a step; of a sharded model, its parts."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.parts = [part_of(each) for each in model.parameters()]
        self.before = [part.clone() for part in self.parts]

    def has_changed(self):
        """Tell whether a weight differs from what it was before the step."""
        return not all(map(torch.equal, self.parts, self.before))


if __name__ == "__main__":
    with report_errors():
        for text, *calls in json.loads(Path(sys.argv[1]).read_text()):
            recipe, watch = Recipe.from_json(text), Watch()
            made = [eval(call, vars(callbacks)) for call in calls]  # noqa: S307 - our own tests'
            try:
                run(recipe, [watch, *made])
            except EndedEarly:
                run(recipe)
            except RecipeError as error:
                if not any(isinstance(each, callbacks.Refused) for each in made):
                    raise
                print(error, file=sys.stderr)
            except NonFiniteError as error:
                weights = "changed" if watch.has_changed() else "unchanged"
                print(f"rank {os.environ['RANK']}: weights {weights}: {error}", file=sys.stderr)
