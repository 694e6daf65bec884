"""The verbs of `gpt2-recipes`: parse, call, nothing else."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import tyro

from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Precision
from pipelines.recipe_cli import LaunchFlags, RepeatFlags
from pipelines.search.plan import SearchFlags
from pipelines.tasks.generation import Generation, GenerationOptions
from pipelines.terminal import report_errors, stop

NO_LAUNCH_FLAGS = LaunchFlags()
NO_REPEAT_FLAGS = RepeatFlags()
NO_SEARCH_FLAGS = SearchFlags()
Repo = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]


def train(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
    launch: Annotated[LaunchFlags, tyro.conf.arg(name="")] = NO_LAUNCH_FLAGS,
) -> None:
    """Run a recipe, in as many processes as an Accelerate config asks for.

    It ends with the run's own exit code, and shows its message last.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, or the name of a shipped recipe.
        flags: Flags of the recipe: `gpt2-recipes train RECIPE --help` lists them.
    """
    from pipelines.train import train as run_recipe

    run_recipe(recipe, flags, launch)


def train_words(words: list[str]) -> None:
    """Call `train` with the words after it."""
    launch, others = launcher_flags(words)
    check_launch("train", launch, others)
    train(*others, launch=launch)


def search(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *values: Annotated[str, tyro.conf.Positional],
    flags: Annotated[SearchFlags, tyro.conf.arg(name="")] = NO_SEARCH_FLAGS,
    launch: Annotated[LaunchFlags, tyro.conf.arg(name="")] = NO_LAUNCH_FLAGS,
) -> None:
    """Search the best values of a recipe's parameters, and train it with them.

    A range is 1e-5:1e-3, 1e-5:1e-3:log or 0.1:0.5:0.1, and choices are 4,8,16. Run the same command
    again to resume, or several times at once for several workers.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, or the name of a shipped recipe.
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


def launcher_flags(
    words: list[str], kind: type[LaunchFlags] = LaunchFlags
) -> tuple[LaunchFlags, list[str]]:
    """Separate the flags of `kind`, which may be anywhere, from the recipe and its flags."""
    parser = argparse.ArgumentParser("gpt2-recipes", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file", "--config_file", type=Path)
    parser.add_argument("--num-processes", "--num_processes", type=int)
    if kind is RepeatFlags:
        parser.add_argument("--seeds", default=NO_REPEAT_FLAGS.seeds)
    launch, others = parser.parse_known_args(words)
    return kind(**vars(launch)), others


def check_launch(verb: str, launch: LaunchFlags, others: list[str]) -> None:
    """Stop for words without a recipe, and for a number of processes below 1."""
    if not others or others[0].startswith("-"):
        stop([f"{verb} takes a RECIPE before the recipe's flags."], 2)
    if launch.num_processes is not None:
        at_least_one("num-processes", launch.num_processes)


def repeat(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    /,
    *flags: Annotated[str, tyro.conf.Positional],
    launch: Annotated[RepeatFlags, tyro.conf.arg(name="")] = NO_REPEAT_FLAGS,
) -> None:
    """Run a recipe once for each of several seeds, and say how much its score varies.

    The rows of all splits stay the same. Run the same command again to resume.

    Args:
        recipe: Python file with a RECIPE, a recipe.json, or the name of a shipped recipe.
        flags: Flags of the recipe: `gpt2-recipes repeat RECIPE --help` lists them.
    """
    from pipelines.repeat import repeat as repeat_recipe

    repeat_recipe(recipe, flags, launch)


def repeat_words(words: list[str]) -> None:
    """Call `repeat` with the words after it."""
    launch, others = launcher_flags(words, RepeatFlags)
    check_launch("repeat", launch, others)
    repeat(*others, launch=cast(RepeatFlags, launch))


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
    """Score a result again, and compare with the score that its run reported.

    Exits with 1 if the scores differ.

    Args:
        repo: Folder of a run, or Hub id.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        data: JSONL or CSV file to score on, in place of the run's evaluation rows.
        metric: Further `evaluate` module: a name of this project, a path, or a name on the Hub.
        metric_options: JSON object of further arguments of its `compute`, as {"average": "macro"}.
    """
    check_result(repo)
    try:
        options = dict(json.loads(metric_options))
    except (ValueError, TypeError):
        stop([f"--metric-options: {metric_options!r} is not a JSON object."], 2)
    from pipelines.evaluation.evaluate import evaluate as score_again

    result = score_again(
        repo, revision=revision, base=base, data=data, metric=metric, metric_options=options
    )
    if result.claimed is not None and not result.equal:
        raise SystemExit(1)


def compare(
    *repos: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO REPO ...")],
    other_rows: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    out: Path | None = None,
) -> None:
    """Show what differs between results, and whether their scores differ by more than chance.

    The first one is the baseline. The test resamples the rows that both were scored on.

    Args:
        repos: Folders of runs, or Hub ids; two or more.
        other_rows: Show scores of different rows or metrics too, without a test.
        as_json: Print JSON in place of the table.
        out: File to write the JSON to.
    """
    if len(repos) < 2:
        stop([f"compare takes two or more results, not {len(repos)}."], 2)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        stop([f"--out: {out} is a folder, or in none. Give the path of a file."], 2)
    from pipelines.evaluation.compare import compare as compare_results
    from pipelines.evaluation.comparison_table import print_comparison, to_json
    from pipelines.results.files import write_whole

    found = compare_results(repos, other_rows=other_rows)
    if out is not None:
        try:
            write_whole(out, to_json(found))
        except OSError as error:
            stop([f"--out: {out}: {error.strerror}."], 2)
    if as_json:
        print(json.dumps(to_json(found), indent=2))
    else:
        print_comparison(found)


def generation_flags() -> Any:
    """Return the fields of Generation as flags that may be left out, with their texts.

    A boolean field is two flags, to turn it on or off.
    """
    flags: list[tuple[str, Any, Any]] = []
    for name, kind in get_type_hints(Generation).items():
        default = tyro.conf.arg(help_behavior_hint="(default: the recipe's)")
        if kind is bool:
            off = tyro.conf.arg(help=f"Turn --{name.replace('_', '-')} off.")
            flag = tyro.conf.FlagCreatePairsOff[bool]
            flags.append((name, Annotated[flag, default], False))
            flags.append((f"no_{name}", Annotated[flag, default, off], False))
        else:
            value = tyro.conf.arg(metavar=kind.__name__.upper())
            flags.append((name, Annotated[kind | None, default, value], None))
    # Derived from Generation, so that tyro finds the docstrings of its fields.
    return make_dataclass("GenerationFlags", flags, bases=(Generation,), frozen=True, kw_only=True)


if TYPE_CHECKING:
    GenerationFlags = Generation
else:
    GenerationFlags = generation_flags()
NO_GENERATION_FLAGS = GenerationFlags()


def typed_options(flags: Generation) -> GenerationOptions:
    """Return the options that were typed. Stop for a boolean that is turned both on and off."""
    typed: dict[str, Any] = {}
    for name, kind in get_type_hints(Generation).items():
        value = getattr(flags, name)
        if kind is bool:
            off = getattr(flags, f"no_{name}")
            flag = name.replace("_", "-")
            if value and off:
                stop([f"--{flag}: contradicts --no-{flag}; give one of them."], 2)
            value = value if value or off else None
        if value is not None:
            typed[name] = value
    return cast(GenerationOptions, typed)


def generate(
    repo: Repo,
    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = None,
    /,
    *,
    file: Path | None = None,
    out: Path | None = None,
    generation: Annotated[GenerationFlags, tyro.conf.arg(name="")] = NO_GENERATION_FLAGS,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 16,
) -> None:
    """Continue a text, or answer it if the result was tuned to; or the rows of a file.

    Options that are not given are those of the recipe. With a --seed the same text samples the same
    tokens, alone or in a file. Run the same command again to finish an --out that was interrupted.

    Args:
        repo: Folder of a run, or Hub id.
        text: What to continue.
        file: JSONL or CSV of texts to continue, in place of TEXT.
        out: File to write JSON lines to, one for each row of --file.
        seed: Seed of the sampling.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        precision: Precision of the base, in place of the one that the adapter was trained on.
        batch_size: Rows in a batch.
    """
    at_least_one("batch-size", batch_size)
    if (text is None) == (file is None):
        stop(["generate takes a TEXT or a --file, one of them."], 2)
    if out is not None and file is None:
        stop(["--out: goes with --file. A single text is printed."], 2)
    typed = typed_options(generation)
    check_result(repo)
    from pipelines.inference.generate import generate_file, generate_text

    loading: Any = {"revision": revision, "base": base, "precision": precision}
    if text is not None:
        generate_text(repo, text, typed, seed=seed, **loading)
    elif file is not None:
        generate_file(repo, file, typed, out=out, seed=seed, batch_size=batch_size, **loading)


def predict(
    repo: Repo,
    file: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    out: Path | None = None,
    keep: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 32,
) -> None:
    """Print labels, or answers, with their scores for the rows of a file, as JSON lines.

    An --out that ends in .csv or .tsv is a table.

    Run the same command again to finish an --out that was interrupted.

    Args:
        repo: Folder of a run, or Hub id.
        file: JSONL or CSV; its rows need no labels.
        out: File to write to instead.
        keep: Columns of the file to write before each prediction, as id,text; by default its id.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        precision: Precision of the base, in place of the one that the adapter was trained on.
        batch_size: Rows in a batch.
    """
    at_least_one("batch-size", batch_size)
    check_result(repo)
    from pipelines.inference.predict import predict_file

    predict_file(
        repo,
        file,
        out=out,
        revision=revision,
        base=base,
        precision=precision,
        batch_size=batch_size,
        keep=None if keep is None else column_names(keep),
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
        out: Folder to write to; empty or new.
        publish: Hub id, as USER/NAME, to upload the model to.
        public: Publish for everybody to see.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of the base, in place of the one that the adapter names.
        rescore: Score the merged model on the rows of the run, or else keep the adapter's score.
    """
    check_result(repo)
    from pipelines.inference.merge import merge as merge_adapter

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
    from pipelines.hub.publish import publish as upload

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
        batch_size: Rows in a batch.
    """
    check_result(repo)
    from pipelines.evaluation.lm_harness import evaluate_with_harness

    evaluate_with_harness(
        repo, tasks, include_path=include_path, limit=limit, batch_size=batch_size
    )


def hub(folder: Path = Path("runs/hub"), port: int = 8643) -> None:
    """Serve a Hub on this machine, for trying and testing.

    The folder's random token is printed, and is in its file `token`, which only you can read.

    Args:
        folder: Folder of the repositories and the token.
        port: Port on loopback; 0 takes a free one.
    """
    from pipelines.hub.local_hub import main as serve

    serve(folder, port)


def doctor(
    config_file: Annotated[
        Path | None,
        tyro.conf.arg(help_behavior_hint="(default: what `accelerate config` wrote, if anything)"),
    ] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Check this machine: devices, kernels, disk, Hub, versions, and what a config starts.

    Exits with 1 if something would stop a run.

    Args:
        config_file: Accelerate config: a file, or the name of a shipped one.
        as_json: Print JSON in place of the screen.
    """
    from pipelines.doctor.command import doctor as examine

    if not examine(config_file, as_json=as_json):
        raise SystemExit(1)


def selftest() -> None:
    """Inject faults into small runs in a temporary folder, and check that they recover.

    Exits with 1 if one does not.
    """
    from pipelines.selftest import selftest as check

    if not check():
        raise SystemExit(1)


def console() -> None:
    """Entry point of `gpt2-recipes`."""
    verbs: dict[str, Callable[..., Any]] = {
        "train": train,
        "repeat": repeat,
        "search": search,
        "evaluate": evaluate,
        "compare": compare,
        "predict": predict,
        "generate": generate,
        "merge": merge,
        "publish": publish,
        "lm-eval": lm_eval,
        "hub": hub,
        "doctor": doctor,
        "selftest": selftest,
    }
    words = sys.argv[1:]
    with report_errors():
        if words == ["--version"]:
            print(f"gpt2-recipes {version('gpt2-recipes')}")
            return
        forwarding = {"train": train_words, "search": search_words, "repeat": repeat_words}
        if words[:1] and words[0] in forwarding and words[1:2] not in ([], ["-h"], ["--help"]):
            forwarding[words[0]](words[1:])
            return
        tyro.extras.subcommand_cli_from_dict(
            verbs,
            prog="gpt2-recipes",
            description="Train, use and publish. --version prints the version.",
        )


def check_result(repo: str | Path) -> None:
    """Raise RecipeError for a folder with a damaged recipe.json, before seconds of imports."""
    file = Path(repo) / "recipe.json"
    if file.is_file():
        Recipe.from_file(file)


def column_names(text: str) -> list[str]:
    """Return the names in a list with commas. Stop for an empty name and for one given twice."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        stop([f"--keep: {text!r} is not a list of different columns, as id,text."], 2)
    return names


def at_least_one(flag: str, value: int) -> None:
    """Stop, naming the flag, for a number below 1."""
    if value < 1:
        stop([f"--{flag}: {value} is out of range; it must be at least 1."], 2)
