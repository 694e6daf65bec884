"""Run a recipe with trackers as a user's processes would, and note every address that is asked for.

    python tests/helpers/track_runs.py RECIPE.json NETWORK.txt PART

The part "begin" is stopped by SIGTERM at step 3, resumes and is killed at step 5. The part "end"
resumes once more, to the end, and then runs the recipe again in another folder without trackers.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def guard(file: Path) -> None:
    """Refuse connections to other machines, and write down their addresses."""

    def look(event, arguments):
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        else:
            return
        if host not in LOOPBACK:
            with file.open("a") as out:
                out.write(f"{event} {host}\n")
            raise ConnectionRefusedError(f"{host}: no network in tests")

    sys.addaudithook(look)


def main(recipe_file: str, network: str, part: str) -> None:
    """Run a part."""
    guard(Path(network))
    from helpers.callbacks import SignalAt
    from pipelines.errors import Preempted
    from pipelines.flow import run
    from pipelines.recipe.recipe import Recipe

    recipe = Recipe.from_file(Path(recipe_file))
    if part == "begin":
        try:
            run(recipe, [SignalAt(3)])
        except Preempted:
            run(recipe, [SignalAt(5, "SIGKILL")])
    else:
        run(recipe)
        without = replace(recipe.train, report_to=())
        run(replace(recipe, train=without, output_dir=f"{recipe.output_dir}-untracked"))


if __name__ == "__main__":
    main(*sys.argv[1:])
