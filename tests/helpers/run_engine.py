"""Run several recipes by the engine that `accelerate launch` requests, FSDP2 on a CPU too.

    ... tests/helpers/run_engine.py RECIPES.json [--interrupt-after N] [--kill-after N]

RECIPES.json is a list of recipes in JSON, each a text. Each run is interrupted after a step and
resumed; or process 1 is killed after a step.
"""

import argparse
import json
import os
import signal
from pathlib import Path

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    import helpers.fsdp_on_cpu  # noqa: F401

from accelerate import PartialState
from transformers import TrainerCallback

from pipelines.errors import EndedEarly
from pipelines.flow import run
from pipelines.recipe.recipe import Recipe
from pipelines.terminal import report_errors


class Stop(TrainerCallback):
    """Interrupts a run after a step, or kills process 1."""

    def __init__(self, interrupt_after, kill_after):
        self.interrupt_after, self.kill_after = interrupt_after, kill_after

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_after and PartialState().process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if state.global_step == self.interrupt_after:
            raise EndedEarly


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--interrupt-after", type=int)
    parser.add_argument("--kill-after", type=int)
    given = parser.parse_args()
    with report_errors():
        for recipe in map(Recipe.from_json, json.loads(given.recipes.read_text())):
            try:
                run(recipe, [Stop(given.interrupt_after, given.kill_after)])
            except EndedEarly:
                run(recipe)
