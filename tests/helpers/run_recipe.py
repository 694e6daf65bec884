"""Run a recipe as a command does, with callbacks.

    python tests/helpers/run_recipe.py RECIPE.json [CALLBACK ...]

A CALLBACK is a call of one of tests/helpers/callbacks.py, such as "SignalAt(2, 'SIGINT')".
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.recipe.recipe import Recipe  # noqa: E402
from pipelines.terminal import report_errors  # noqa: E402

if __name__ == "__main__":
    file, *calls = sys.argv[1:]
    with report_errors():
        from helpers import callbacks
        from pipelines.flow import run

        made = [eval(call, vars(callbacks)) for call in calls]  # noqa: S307 - our own tests'
        run(Recipe.from_file(Path(file)), made)
