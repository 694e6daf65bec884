"""Run several recipes by the engine that `accelerate launch` requests, FSDP2 on a CPU too.

    accelerate launch ... tests/helpers/run_engine.py RECIPES.json [--end-after N | --kill-after N]

RECIPES.json is a list of recipes in JSON, each a text. Each run ends after a step as if a callback
ended it; or process 1 is killed.
"""

import argparse
import json
import os
import signal
import sys
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
    """Ends a run after a step, or kills process 1."""

    def __init__(self, end_after, kill_after):
        self.end_after, self.kill_after = end_after, kill_after

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_after and PartialState().process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.end_after:  # after a checkpoint of that step
            raise EndedEarly


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--end-after", type=int)
    parser.add_argument("--kill-after", type=int)
    given = parser.parse_args()
    with report_errors():
        for text in json.loads(given.recipes.read_text()):
            try:
                run(Recipe.from_json(text), [Stop(given.end_after, given.kill_after)])
            except EndedEarly:
                print("ended", file=sys.stderr)
