"""`gpt2-recipes search`: check the command line, then be a worker of its study.

Imports torch and Optuna only to search.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import Problem, RecipeError
from pipelines.recipe_cli import LaunchFlags, print_help
from pipelines.search.plan import SearchFlags, make_plan, split_flags
from pipelines.shipped import find_file
from pipelines.terminal import report_errors
from pipelines.train import Launcher, load_recipe, replace_process, validated
from pipelines.training.tracker_checks import check_trackers


def search(recipe: str, words: Sequence[str], launch_flags: LaunchFlags) -> None:
    """Search with the flags of the command, in this process, and end with its exit code.

    Raise RecipeError for values that the recipe does not allow, before anything is loaded.
    """
    file = find_file(recipe, "recipes", field="RECIPE")
    launcher = Launcher.of(launch_flags)
    if {"-h", "--help"} & set(words):
        print_help(load_recipe(file), f"gpt2-recipes search {recipe}", SearchFlags, LaunchFlags)
    if launch_flags.num_processes not in (None, 1):
        text = f"{launch_flags.num_processes}: a trial runs in one process. Start the same command "
        raise RecipeError([Problem("num_processes", f"{text}once for each worker instead.")])
    if not launcher.needed:
        launcher.set_environment()
        search_file(file, words)
        return
    flags, others = split_flags(words)
    make_plan(load_recipe(file), flags, others)  # before seconds of imports
    module = ["--module", "pipelines.search.command", str(file), *words]
    arguments = validated(["--config_file", str(launcher.config_file), *module])
    if arguments.multi_gpu:
        text = f"{launcher.config_file} starts several processes, and a trial runs in one. Use "
        text += "--config-file single_gpu, and start the command once for each GPU."
        raise RecipeError([Problem("config_file", text)])
    replace_process(arguments)


def search_file(file: Path, words: Sequence[str]) -> None:
    """Search the recipe of a file with the flags of a command line, in this process."""
    flags, others = split_flags(words)
    plan = make_plan(load_recipe(file), flags, others)
    if importlib.util.find_spec("optuna") is None:
        text = 'Use `pip install -c constraints.txt -e ".[search]"`.'
        text = f"needs Optuna, which is not installed. {text}"
        raise RecipeError([Problem("gpt2-recipes search", text)])
    check_trackers(plan.recipe.train.report_to)
    from pipelines.search.worker import work

    work(plan)


if __name__ == "__main__":
    with report_errors():
        search_file(Path(sys.argv[1]), sys.argv[2:])
