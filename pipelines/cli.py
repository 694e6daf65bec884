"""The command line of a recipe, and of `gpt2-recipes`."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from pipelines.recipe import Problem, Recipe, RecipeError, RunError
from pipelines.tasks import DataError


def main(recipe: Recipe) -> None:
    """Run a recipe with the values of the command line in place of its own."""
    config = (tyro.conf.AvoidSubcommands,)
    with reported():
        chosen = tyro.cli(Recipe, default=recipe, config=config, description=recipe.name)
        from pipelines.run import run

        run(chosen)


Repo = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]


def evaluate(
    repo: Repo,
    /,
    *,
    revision: str | None = None,
    data: Path | None = None,
    metric: str | None = None,
    metric_options: str = "{}",
) -> None:
    """Score a result, and compare with the score that its run claims.

    Exits with 1 where the claim is not found again.

    Args:
        repo: Folder of a run, or Hub id.
        revision: Commit, branch or tag on the Hub.
        data: JSONL or CSV file to score on, in place of the run's evaluation rows.
        metric: Further `evaluate` module: a name of this project, a path, or a name on the Hub.
        metric_options: What its `compute` takes beside the rows, as {"average": "macro"}.
    """
    try:
        options = dict(json.loads(metric_options))
    except (ValueError, TypeError):
        stop([f"--metric-options: {metric_options!r} is not a JSON object."], 2)
    from pipelines.scoring import evaluate_adapter

    result = evaluate_adapter(repo, revision, data=data, metric=metric, metric_options=options)
    if result.claimed is not None and not result.equal:
        raise SystemExit(1)


def predict(
    repo: Repo,
    file: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    out: Path | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Literal["fp32", "bf16", "8bit", "4bit"] | None = None,
    batch_size: int = 32,
) -> None:
    """Print labels, or answers, with their scores for the rows of a file, as JSON lines.

    The same command finishes an --out that a stopped one has begun.

    Args:
        repo: Folder of a run, or Hub id.
        file: JSONL or CSV; its rows need no labels.
        out: File to write to instead.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        precision: Of the base, in place of what the adapter was trained on.
        batch_size: Rows at once.
    """
    at_least_one("batch-size", batch_size)
    from pipelines.predict import predict_file

    predict_file(
        repo,
        file,
        out=out,
        revision=revision,
        base=base,
        precision=precision,
        batch_size=batch_size,
    )


def publish(folder: Annotated[Path, tyro.conf.Positional], repo: Repo, /, *, public: bool = False):
    """Upload a result to the Hub, or finish an upload.

    Args:
        folder: Folder of a run.
        repo: Hub id, as USER/NAME.
        public: Publish for everybody to see.
    """
    from pipelines.publish import publish as upload

    upload(folder, repo, public=public)


def lm_eval(
    repo: Repo,
    /,
    *,
    tasks: tuple[str, ...],
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> None:
    """Score a language model with EleutherAI's lm-evaluation-harness.

    Args:
        repo: Folder of a run, or Hub id.
        tasks: Names of the harness's tasks.
        include_path: Folder with task files of your own.
        limit: Rows of each task.
        batch_size: Rows at once.
    """
    from pipelines.harness import evaluate_with_harness

    evaluate_with_harness(
        repo, tasks, include_path=include_path, limit=limit, batch_size=batch_size
    )


def hub(folder: Path = Path("runs/hub"), port: int = 8643) -> None:
    """Serve a Hub on this machine, for trying and testing.

    Args:
        folder: Where it keeps the repositories.
        port: Port on loopback; 0 takes a free one.
    """
    script = Path(__file__).parents[1] / "scripts" / "local_hub.py"
    if not script.is_file():
        stop([f"{script} is not there: the Hub for trying needs a checkout of the project."], 2)
    runpy.run_path(str(script))["main"](folder=folder, port=port)


def console() -> None:
    """Entry point of `gpt2-recipes`."""
    verbs: dict[str, Callable[..., Any]] = {
        "evaluate": evaluate,
        "predict": predict,
        "publish": publish,
        "lm-eval": lm_eval,
        "hub": hub,
    }
    with reported():
        tyro.extras.subcommand_cli_from_dict(verbs, description="Use and publish results.")


class reported:  # noqa: N801 - a context manager, used as a word
    """Show what ends a run as a few lines and an exit code."""

    def __enter__(self) -> None:
        # It warns at import, before `quiet` can be imported, of kernels that are not installed.
        getLogger("bitsandbytes").setLevel(ERROR)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RecipeError):
            stop([as_typed(problem) for problem in error.problems], error.exit_code)
        if isinstance(error, RunError):
            stop(str(error).splitlines(), error.exit_code)
        if isinstance(error, DataError):
            stop(str(error).splitlines(), 3)


def as_typed(problem: Problem) -> str:
    """Name a field as the command line does."""
    name = problem.path
    if name.isidentifier() or "." in name:
        name = "--" + name.replace("_", "-")
    return f"{name}: {problem.message}"


def at_least_one(flag: str, value: int) -> None:
    """Stop, naming the flag, for a number below 1."""
    if value < 1:
        stop([f"--{flag}: {value} is out of range; it must be at least 1."], 2)


def stop(lines: list[str], code: int) -> NoReturn:
    """Print the lines once, from the first process, and exit."""
    import os

    if os.environ.get("RANK", "0") == "0":
        print("\n".join(lines), file=sys.stderr)
    raise SystemExit(code)
