"""The command line of a recipe, and of `gpt2-recipes`."""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from pipelines.abandonable import end_process
from pipelines.errors import Problem, RecipeError, RunError
from pipelines.log import scrubbed
from pipelines.recipe import Recipe
from pipelines.tasks import DataError


def main(recipe: Recipe) -> None:
    """Run a recipe with the values of the command line in place of its own."""
    config = (tyro.conf.AvoidSubcommands,)
    with reported():
        chosen = tyro.cli(Recipe, default=recipe, config=config, description=recipe.name)
        from pipelines.run import run

        run(chosen)


Precision = Literal["fp32", "bf16", "8bit", "4bit"]
Repo = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]


def evaluate(
    repo: Repo,
    /,
    *,
    revision: str | None = None,
    base: str | None = None,
    data: Path | None = None,
    metric: str | None = None,
    metric_options: str = "{}",
) -> None:
    """Score a result, and compare with the score that its run claims.

    Exits with 1 where the claim is not found again.

    Args:
        repo: Folder of a run, or Hub id.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        data: JSONL or CSV file to score on, in place of the run's evaluation rows.
        metric: Further `evaluate` module: a name of this project, a path, or a name on the Hub.
        metric_options: What its `compute` takes beside the rows, as {"average": "macro"}.
    """
    check_result(repo)
    try:
        options = dict(json.loads(metric_options))
    except (ValueError, TypeError):
        stop([f"--metric-options: {metric_options!r} is not a JSON object."], 2)
    from pipelines.scoring import evaluate_adapter

    result = evaluate_adapter(
        repo, revision, base=base, data=data, metric=metric, metric_options=options
    )
    if result.claimed is not None and not result.equal:
        raise SystemExit(1)


def generate(
    repo: Repo,
    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = None,
    /,
    *,
    file: Path | None = None,
    out: Path | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    do_sample: tyro.conf.FlagCreatePairsOff[bool] = False,
    no_do_sample: tyro.conf.FlagCreatePairsOff[bool] = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    length_penalty: float | None = None,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 16,
) -> None:
    """Continue a text, or answer it if the result was tuned to; or the rows of a file.

    Options that are not given are those of the recipe. With a --seed, the same text draws the same
    tokens, alone or in a file. The same command finishes an --out that a stopped one has begun.

    Args:
        repo: Folder of a run, or Hub id.
        text: What to continue.
        file: JSONL or CSV of texts to continue, in place of TEXT.
        out: File to write JSON lines to, one for each row of --file.
        max_new_tokens: Most tokens to write.
        num_beams: Beams of a beam search; 1 takes the likeliest token each time.
        do_sample: Draw tokens at random, by their probability.
        no_do_sample: Draw none, where the recipe does.
        temperature: Divides the logits before drawing.
        top_k: Draw from so many of the likeliest tokens; 0 draws from all.
        top_p: Draw from the likeliest tokens that hold this share of the probability.
        repetition_penalty: Above 1 makes tokens that stand there already less likely.
        no_repeat_ngram_size: Never write the same n-gram of this size twice; 0 may.
        length_penalty: Of a beam search: above 0 favours longer texts, below 0 shorter ones.
        seed: Of what is drawn.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        precision: Of the base, in place of what the adapter was trained on.
        batch_size: Rows at once.
    """
    at_least_one("batch-size", batch_size)
    if (text is None) == (file is None):
        stop(["generate takes a TEXT or a --file, one of them."], 2)
    if out is not None and file is None:
        stop(["--out: goes with --file. A single text is printed."], 2)
    if do_sample and no_do_sample:
        stop(["--do-sample: stands beside --no-do-sample; give one of them."], 2)
    flags = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": do_sample if do_sample or no_do_sample else None,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "length_penalty": length_penalty,
    }
    typed = {name: value for name, value in flags.items() if value is not None}
    where: dict[str, Any] = {
        "seed": seed,
        "revision": revision,
        "base": base,
        "precision": precision,
    }
    check_result(repo)
    from pipelines.write import write_file, write_text

    if text is not None:
        write_text(repo, text, typed, **where)
    elif file is not None:
        write_file(repo, file, typed, out=out, batch_size=batch_size, **where)


def predict(
    repo: Repo,
    file: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    out: Path | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
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
    check_result(repo)
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


def merge(
    repo: Repo,
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    publish: str | None = None,
    public: bool = False,
    revision: str | None = None,
    base: str | None = None,
    rescore: bool = True,
) -> None:
    """Merge an adapter into its base, in full precision, as an ordinary model.

    Args:
        repo: Folder of a run, or Hub id.
        out: Folder to write to; empty, or not there yet.
        publish: Hub id, as USER/NAME, to upload the model to.
        public: Publish for everybody to see.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of the base, in place of the one that the adapter names.
        rescore: Score the model on the rows of the run; if not, its score is the adapter's.
    """
    check_result(repo)
    from pipelines.merge import merge as merge_adapter

    merge_adapter(
        repo,
        out,
        revision=revision,
        base=base,
        publish_to=publish,
        public=public,
        rescore=rescore,
    )


def publish(
    folder: Annotated[Path, tyro.conf.Positional],
    repo: Repo,
    /,
    *,
    public: bool = False,
    base: str | None = None,
    with_base: str | None = None,
) -> None:
    """Upload a result to the Hub, or finish an upload.

    An adapter that was trained on a base on this machine needs that base on the Hub: name it with
    --base, or publish it in the same command with --with-base.

    Args:
        folder: Folder of a run.
        repo: Hub id, as USER/NAME.
        public: Publish for everybody to see.
        base: Hub id of an adapter's base, as USER/NAME or USER/NAME@COMMIT; it must have the
            weights that the adapter was trained on.
        with_base: Hub id, as USER/NAME, to publish an adapter's local base to first.
    """
    check_result(folder)
    from pipelines.publish import publish as upload

    upload(folder, repo, public=public, base=base, with_base=with_base)


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
    check_result(repo)
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


def selftest() -> None:
    """Break runs on purpose on this machine, in a temporary folder, and see that they recover.

    Exits with 1 where one does not.
    """
    from pipelines.selftest import selftest as check

    if not check():
        raise SystemExit(1)


def console() -> None:
    """Entry point of `gpt2-recipes`."""
    verbs: dict[str, Callable[..., Any]] = {
        "evaluate": evaluate,
        "predict": predict,
        "generate": generate,
        "merge": merge,
        "publish": publish,
        "lm-eval": lm_eval,
        "hub": hub,
        "selftest": selftest,
    }
    with reported():
        tyro.extras.subcommand_cli_from_dict(verbs, description="Use and publish results.")


def check_result(repo: str | Path) -> None:
    """Raise RecipeError for a folder with a damaged recipe.json, before seconds of imports."""
    file = Path(repo) / "recipe.json"
    if file.is_file():
        Recipe.from_file(file)


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
            # A loader's worker wraps it in a trace, which run.log has.
            stop(str(error).rpartition("DataError: ")[2].splitlines(), 3)
        if isinstance(error, KeyboardInterrupt):
            stop(["stopped by Ctrl-C."], 130)
        if isinstance(error, BrokenPipeError):  # as `| head` closes it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0)
        if isinstance(error, Exception):
            stop(unexpected(error), 1, everywhere=True)


def unexpected(error: Exception) -> list[str]:
    """Return the lines for an error that is ours, or of another process: short where it is logged.

    On two ranks, one that loses the other fails too, by an error that says little.
    """
    notes = getattr(error, "__notes__", [])
    lines = traceback.format_exception(error)
    if notes:
        lines = [f"{type(error).__name__}: {error}".splitlines()[0], *notes]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        rank = os.environ["RANK"]
        lines = [
            f"rank {rank}: {lines[0]}",
            *lines[1:],
            "If another rank ended first, the launcher names it below as the root cause. The same "
            "command goes on from the last checkpoint.",
        ]
    return "\n".join(lines).splitlines()


def as_typed(problem: Problem) -> str:
    """Name a field as the command line does: flags in small letters, TEXT and OUT as they are."""
    name = problem.path
    flag = name.isidentifier() or "." in name
    if flag and name != "recipe.json" and "/" not in name and not name.isupper():
        name = "--" + name.replace("_", "-")
    return f"{name}: {problem.message}"


def at_least_one(flag: str, value: int) -> None:
    """Stop, naming the flag, for a number below 1."""
    if value < 1:
        stop([f"--{flag}: {value} is out of range; it must be at least 1."], 2)


def stop(lines: list[str], code: int, *, everywhere: bool = False) -> NoReturn:
    """Print the lines, once from the first process or from each, and exit."""
    if everywhere or os.environ.get("RANK", "0") == "0":
        print(scrubbed("\n".join(lines)), file=sys.stderr)
    end_process(code)
    raise SystemExit(code)
