"""Run several recipes one after the other, as `accelerate launch` starts it.

    accelerate launch ... tests/helpers/run_all.py RECIPES.json

RECIPES.json is a list of recipes in JSON, each a text.
"""

import json
import sys
from pathlib import Path

from pipelines.flow import run
from pipelines.recipe.recipe import Recipe

if __name__ == "__main__":
    for text in json.loads(Path(sys.argv[1]).read_text()):
        run(Recipe.from_json(text))
