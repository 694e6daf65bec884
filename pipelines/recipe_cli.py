"""The command line of a recipe: flags in, a run out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

from pipelines.flags import parse_words
from pipelines.flags_upstream import honour_no_color
from pipelines.recipe.recipe import Recipe
from pipelines.terminal import report_errors
from pipelines.training.early_errors import telling_other_machines
from pipelines.training.tracker_checks import check_trackers


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """Flags of a verb that starts processes, which come before or after those of the recipe."""

    config_file: Annotated[
        Path | None,
        tyro.conf.arg(help_behavior_hint="(default: what `accelerate config` wrote, if anything)"),
    ] = None
    """Accelerate config: a file, or the name of a shipped one, such as cpu_2_processes."""
    num_processes: Annotated[
        int | None,
        tyro.conf.arg(help_behavior_hint="(default: the config's, or one for each GPU)"),
    ] = None
    """Number of processes, of all machines together."""


@dataclass(frozen=True, kw_only=True)
class MachineFlags(LaunchFlags):
    """Flags of `gpt2-recipes train`: each of several machines runs the same command."""

    num_machines: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: the config's, or 1)")
    ] = None
    """Number of machines."""
    machine_rank: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: the config's)")
    ] = None
    """Which of the machines this is, counted from 0; the only flag that differs between them."""
    main_process_ip: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(default: the config's)")
    ] = None
    """Address or host name of machine 0, as the other machines reach it."""
    main_process_port: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: the config's, or 29500)")
    ] = None
    """A port that is free on machine 0."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of `gpt2-recipes run`, which come before or after those of the recipe."""

    gpus: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: all that are visible)")
    ] = None
    """Number of GPUs; 0 runs on the CPU."""


@dataclass(frozen=True, kw_only=True)
class PlanFlags(LaunchFlags):
    """Flags of `gpt2-recipes plan`."""

    json: bool = False
    """Print the plan as JSON, with bytes and seconds."""


@dataclass(frozen=True, kw_only=True)
class RepeatFlags(MachineFlags):
    """Flags of `gpt2-recipes repeat`."""

    seeds: Annotated[str, tyro.conf.arg(metavar="N|SEED,SEED,...")] = "5"
    """Number of seeds, which count up from --train.seed; or the seeds themselves."""


def main(recipe: Recipe) -> None:
    """Run a recipe with the values of the command line in place of its own."""
    with report_errors():
        with telling_other_machines():
            chosen = parse(recipe, sys.argv)
            check_trackers(chosen.train.report_to)
        from pipelines.flow import run

        run(chosen)


def parse(recipe: Recipe, command: list[str]) -> Recipe:
    """Return a recipe with the values of a command line, whose first word is the program."""
    program = Path(command[0]).name
    return cast(
        Recipe,
        parse_words(
            Recipe,
            command[1:],
            program=program,
            default=recipe,
            config=(tyro.conf.AvoidSubcommands,),
            description=recipe.name,
        ),
    )


def print_help(recipe: Recipe, program: str, *others: type) -> None:
    """Print the flags of a recipe, with those of other frozen dataclasses, and exit."""
    honour_no_color()
    sections: list[tuple[str, Any, Any]] = [
        (kind.__name__, Annotated[kind, tyro.conf.arg(name="")], kind()) for kind in others
    ]
    values = ("values", Annotated[Recipe, tyro.conf.arg(name="")], recipe)
    tyro.cli(
        make_dataclass("Flags", [values, *sections], frozen=True, kw_only=True),
        prog=program,
        args=["--help"],
        config=(tyro.conf.AvoidSubcommands,),
        description=recipe.name,
    )
