"""The command line of a recipe, and of `gpt2-recipes`."""

from __future__ import annotations

import sys
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.recipe import Problem, Recipe, RecipeError
from pipelines.tasks import DataError


def main(recipe: Recipe) -> None:
    """Run a recipe with the values of the command line in place of its own."""
    config = (tyro.conf.AvoidSubcommands,)
    with reported():
        chosen = tyro.cli(Recipe, default=recipe, config=config, description=recipe.name)
        from pipelines.run import run

        run(chosen)


def evaluate(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Score a saved result on the evaluation split of its recipe."""
    from pipelines.run import evaluate_adapter

    evaluate_adapter(folder)


def predict(
    folder: Annotated[Path, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    /,
) -> None:
    """Print labels, or answers, for the rows of a JSONL or CSV file."""
    from pipelines.predict import predict_file

    predict_file(folder, file)


def console() -> None:
    """Entry point of `gpt2-recipes`."""
    with reported():
        tyro.extras.subcommand_cli_from_dict({"evaluate": evaluate, "predict": predict})


class reported:  # noqa: N801 - a context manager, used as a word
    """Show the user's mistakes as a few lines and an exit code: 2 recipe, 3 data."""

    def __enter__(self) -> None:
        # It warns at import, before `quiet` can be imported, of kernels that are not installed.
        getLogger("bitsandbytes").setLevel(ERROR)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RecipeError):
            stop([as_typed(problem) for problem in error.problems], 2)
        if isinstance(error, DataError):
            stop(str(error).splitlines(), 3)


def as_typed(problem: Problem) -> str:
    """Name a field as the command line does."""
    name = problem.path
    if name.isidentifier() or "." in name:
        name = "--" + name.replace("_", "-")
    return f"{name}: {problem.message}"


def stop(lines: list[str], code: int) -> None:
    """Print the lines once, from the first process, and exit."""
    import os

    if os.environ.get("RANK", "0") == "0":
        print("\n".join(lines), file=sys.stderr)
    raise SystemExit(code)
