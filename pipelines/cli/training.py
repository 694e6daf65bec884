"""Verbs that train: parse, call, nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, NoReturn, cast

import tyro

from pipelines.cli.checks import at_least_one
from pipelines.recipe_cli import LaunchFlags, MachineFlags, PlanFlags, RepeatFlags, RunFlags
from pipelines.search.plan import SearchFlags
from pipelines.terminal import stop

NO_LAUNCH_FLAGS = LaunchFlags()
NO_MACHINE_FLAGS = MachineFlags()
NO_PLAN_FLAGS = PlanFlags()
NO_RUN_FLAGS = RunFlags()
NO_REPEAT_FLAGS = RepeatFlags()
NO_SEARCH_FLAGS = SearchFlags()


def run(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
    run_flags: Annotated[RunFlags, tyro.conf.arg(name="")] = NO_RUN_FLAGS,
) -> None:
    """Run a recipe on the GPUs of this machine, or on its CPU.

    It chooses the Accelerate config, and prints the `accelerate launch` line that does the same.
    Use `train` to give a config of your own: for several machines, or another precision.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, the folder of a run, or a shipped name.
        flags: Flags of the recipe: `gpt2-recipes run RECIPE --help` lists them.
    """
    from pipelines.run_here import run_here

    run_here(recipe, flags, run_flags)


def run_words(words: list[str]) -> None:
    """Call `run` with the words after it."""
    parser = argparse.ArgumentParser("gpt2-recipes run", add_help=False, allow_abbrev=False)
    parser.add_argument("--gpus")
    typed, others = parser.parse_known_args(words)
    check_recipe("run", others)
    gpus = typed.gpus
    if gpus is not None and not (gpus.isascii() and gpus.isdigit()):
        stop([f"--gpus: {gpus!r} is not a number of GPUs."], 2)
    run(*others, run_flags=RunFlags(gpus=None if gpus is None else int(gpus)))


def train(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
    launch: Annotated[MachineFlags, tyro.conf.arg(name="")] = NO_MACHINE_FLAGS,
) -> None:
    """Run a recipe in the processes that an Accelerate config asks for.

    It ends with the run's own exit code, and shows its message last. Several machines run the same
    command, each with its own --machine-rank.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, the folder of a run, or a shipped name.
        flags: Flags of the recipe: `gpt2-recipes train RECIPE --help` lists them.
    """
    from pipelines.train import train as run_recipe

    run_recipe(recipe, flags, launch)


def train_words(words: list[str]) -> None:
    """Call `train` with the words after it."""
    launch, others = launcher_flags(words, MachineFlags)
    check_launch("train", launch, others)
    train(*others, launch=cast(MachineFlags, launch))


def search(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *values: Annotated[str, tyro.conf.Positional],
    flags: Annotated[SearchFlags, tyro.conf.arg(name="")] = NO_SEARCH_FLAGS,
    launch: Annotated[LaunchFlags, tyro.conf.arg(name="")] = NO_LAUNCH_FLAGS,
) -> None:
    """Search the best values of parameters, and train with them.

    A range is 1e-5:1e-3, 1e-5:1e-3:log or 0.1:0.5:0.1, and choices are 4,8,16. Run the same command
    again to resume, or several times at once for several workers.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, the folder of a run, or a shipped name.
        values: Flags of the recipe, with a value, a range or choices each:
            --train.learning-rate 1e-5:1e-3:log --lora.r 4,8,16
    """
    raise NotImplementedError  # search_words reads the words


def search_words(words: list[str]) -> None:
    """Search with the words after `search`."""
    launch, others = launcher_flags(words)
    check_launch("search", launch, others)
    from pipelines.search.command import search as run_search

    run_search(others[0], others[1:], launch)


class FlagParser(argparse.ArgumentParser):
    """Stops for a wrong value with one line, in place of all flags."""

    def error(self, message: str) -> NoReturn:
        """Stop, naming the flag."""
        names, _, text = message.removeprefix("argument ").partition(": ")
        stop([f"{names.split('/')[0]}: {text}."], 2)


def launcher_flags(
    words: list[str], kind: type[LaunchFlags] = LaunchFlags
) -> tuple[LaunchFlags, list[str]]:
    """Separate the flags of `kind`, which may be anywhere, from the recipe and its flags."""
    parser = FlagParser("gpt2-recipes", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file", "--config_file", type=Path)
    parser.add_argument("--num-processes", "--num_processes", type=int)
    if issubclass(kind, MachineFlags):
        parser.add_argument("--main-process-ip", "--main_process_ip")
        for name in ("num-machines", "machine-rank", "main-process-port"):
            parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", type=int)
    if kind is PlanFlags:
        parser.add_argument("--json", action="store_true")
    if kind is RepeatFlags:
        parser.add_argument("--seeds", default=NO_REPEAT_FLAGS.seeds)
    launch, others = parser.parse_known_args(words)
    return kind(**vars(launch)), others


def check_recipe(verb: str, words: list[str]) -> None:
    """Stop for words that do not begin with a recipe."""
    if not words or words[0].startswith("-"):
        stop([f"{verb} takes a RECIPE before the recipe's flags."], 2)


def check_launch(verb: str, launch: LaunchFlags, others: list[str]) -> None:
    """Stop for words without a recipe, and for a number of processes below 1."""
    check_recipe(verb, others)
    if launch.num_processes is not None:
        at_least_one("num-processes", launch.num_processes)


def plan(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
    options: Annotated[PlanFlags, tyro.conf.arg(name="")] = NO_PLAN_FLAGS,
) -> None:
    """Check a recipe, and predict memory, time and disk of its run.

    A copy of the model with two layers is trained for two steps, saved, loaded and scored in a
    temporary folder. Nothing is written to the run's folder.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, the folder of a run, or a shipped name.
        flags: Flags of the recipe: `gpt2-recipes plan RECIPE --help` lists them.
    """
    from pipelines.planning.command import plan as plan_run

    plan_run(recipe, flags, options)


def plan_words(words: list[str]) -> None:
    """Call `plan` with the words after it."""
    launch, others = launcher_flags(words, PlanFlags)
    check_launch("plan", launch, others)
    plan(*others, options=cast(PlanFlags, launch))


def tokenize(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
) -> None:
    """Prepare the rows of a recipe on disk, once for all runs.

    The first run of a large data set does so itself. Nothing is written to the run's folder.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, the folder of a run, or a shipped name.
        flags: Flags of the recipe: `gpt2-recipes tokenize RECIPE --help` lists them.
    """
    from pipelines.tokenize import tokenize as tokenize_rows

    tokenize_rows(recipe, flags)


def tokenize_words(words: list[str]) -> None:
    """Call `tokenize` with the words after it."""
    check_recipe("tokenize", words)
    tokenize(*words)


def repeat(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
    launch: Annotated[RepeatFlags, tyro.conf.arg(name="")] = NO_REPEAT_FLAGS,
) -> None:
    """Run a recipe with several seeds, and say how its score varies.

    The rows of all splits stay the same. Run the same command again to resume.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, the folder of a run, or a shipped name.
        flags: Flags of the recipe: `gpt2-recipes repeat RECIPE --help` lists them.
    """
    from pipelines.repeat import repeat as repeat_recipe

    repeat_recipe(recipe, flags, launch)


def repeat_words(words: list[str]) -> None:
    """Call `repeat` with the words after it."""
    launch, others = launcher_flags(words, RepeatFlags)
    check_launch("repeat", launch, others)
    repeat(*others, launch=cast(RepeatFlags, launch))
