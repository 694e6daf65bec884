"""`gpt2-recipes run`: run a recipe with the Accelerate config that fits this machine.

Imports torch only to run, and to count GPUs where no NVIDIA driver does it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import Problem, RecipeError
from pipelines.recipe_cli import LaunchFlags, RunFlags, parse, print_help
from pipelines.shipped import find_file
from pipelines.train import Launcher, load_recipe, start
from pipelines.training.launcher import VISIBLE, count_gpus


def run_here(recipe: str, flags: Sequence[str], run_flags: RunFlags) -> None:
    """Run a recipe with its flags on GPUs of this machine, and end with its exit code.

    Raise RecipeError as `train` does, and for more GPUs than are visible.
    """
    file = find_file(recipe, "recipes", field="RECIPE")
    if {"-h", "--help"} & set(flags):
        print_help(load_recipe(file), f"gpt2-recipes run {recipe}", RunFlags)
    parse(load_recipe(file), [str(file), *flags])  # before the GPUs are counted
    launch_flags = fitting(run_flags.gpus)
    launcher = Launcher.of(launch_flags)
    print(accelerate_command(file, flags, launcher), flush=True)
    start(file, flags, launcher)


def fitting(num_gpus: int | None) -> LaunchFlags:
    """Return the shipped config for a number of GPUs, or for all that are visible.

    Raise RecipeError for more GPUs than are visible.
    """
    if num_gpus != 0:
        visible = count_gpus()
        if num_gpus is not None and num_gpus > visible:
            raise RecipeError([Problem("gpus", too_many(num_gpus, visible))])
        num_gpus = visible if num_gpus is None else num_gpus
    if num_gpus > 1:
        return LaunchFlags(config_file=Path("multi_gpu"), num_processes=num_gpus)
    return LaunchFlags(config_file=Path("single_gpu" if num_gpus else "cpu"))


def too_many(num_gpus: int, visible: int) -> str:
    """Return the message for more GPUs than are visible."""
    shown = f" with {VISIBLE}={os.environ[VISIBLE]}" if VISIBLE in os.environ else ""
    there = f"this machine shows {visible or 'none'}{shown}"
    fewer = f"--gpus {visible}, or --gpus 0 for the CPU" if visible else "--gpus 0 for the CPU"
    return f"{num_gpus} requested, and {there}. Use {fewer}."


def accelerate_command(file: Path, flags: Sequence[str], launcher: Launcher) -> str:
    """Return the `accelerate launch` line that does the same as this run."""
    words = ["accelerate", "launch", "--config_file", as_typed(launcher.config_file)]
    if launcher.num_processes is not None:
        words += ["--num_processes", str(launcher.num_processes)]
    is_script = file.suffix != ".json"
    words += [as_typed(file)] if is_script else ["--module", "pipelines.train", as_typed(file)]
    return shlex.join([*words, *flags])


def as_typed(file: Path | None) -> str:
    """Return a path as it is typed in the current folder."""
    assert file is not None
    inside = file.is_absolute() and file.is_relative_to(Path.cwd())
    return str(file.relative_to(Path.cwd()) if inside else file)
