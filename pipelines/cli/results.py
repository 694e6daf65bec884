"""Verbs that use a result: parse, call, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipelines.cli.checks import (
    at_least_one,
    check_assistance,
    check_chats,
    check_extra,
    check_result,
    column_names,
    read_task,
)
from pipelines.cli.generation_flags import NO_GENERATION_FLAGS, GenerationFlags, typed_options
from pipelines.exporting.formats import FORMATS, FormatName, check_export, check_task
from pipelines.recipe.values import Precision
from pipelines.terminal import stop

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
    """Score a result again, and compare with the score of its run.

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
    """Show what differs between results, and whether that is chance.

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


def generate(
    repo: Repo,
    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = None,
    /,
    *,
    file: Path | None = None,
    out: Path | None = None,
    generation: Annotated[GenerationFlags, tyro.conf.arg(name="")] = NO_GENERATION_FLAGS,
    seed: int | None = None,
    assistant: str | None = None,
    prompt_lookup_num_tokens: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    batch_size: int = 16,
) -> None:
    """Continue a text, or reply to it; or do so for the rows of a file.

    Options that are not given are those of the recipe. With a --seed the same text samples the same
    tokens, alone or in a file. Run the same command again to finish an --out that was interrupted.

    Args:
        repo: Folder of a run, or Hub id.
        text: What to continue.
        file: JSONL or CSV of texts to continue, in place of TEXT.
        out: File to write JSON lines to, one for each row of --file.
        seed: Seed of the sampling.
        assistant: Folder or Hub id of a smaller result that proposes tokens, for speed.
        prompt_lookup_num_tokens: Tokens to propose from the text before, for speed.
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
    helped: Any = {"assistant": assistant, "prompt_lookup_num_tokens": prompt_lookup_num_tokens}
    check_assistance(repo, revision, typed, num_at_once=batch_size if file else 1, **helped)
    from pipelines.inference.generate import generate_file, generate_text

    loading: Any = {"revision": revision, "base": base, "precision": precision, **helped}
    if text is not None:
        generate_text(repo, text, typed, seed=seed, **loading)
    elif file is not None:
        generate_file(repo, file, typed, out=out, seed=seed, batch_size=batch_size, **loading)


def chat(
    repo: Repo,
    /,
    *,
    generation: Annotated[GenerationFlags, tyro.conf.arg(name="")] = NO_GENERATION_FLAGS,
    seed: int | None = None,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Talk with a language model in the terminal.

    Each line that you type, or that a pipe gives, is a message; /help lists the commands. Options
    that are not given are those of the recipe. Ctrl-C stops a reply, Ctrl-D ends.

    Args:
        repo: Folder of a run, or Hub id.
        seed: Seed of the sampling.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        precision: Precision of the base, in place of the one that the adapter was trained on.
    """
    typed = typed_options(generation)
    check_result(repo)
    check_chats(repo, revision, typed)
    from pipelines.inference.chat_terminal import chat as talk

    talk(repo, typed, seed=seed, revision=revision, base=base, precision=precision)


def demo(
    repo: Repo,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    publish: str | None = None,
    public: bool = False,
    revision: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
) -> None:
    """Show a result on a page in the browser, or as a Space.

    The page suits the task: labels with their probabilities, an answer in its context, a text or a
    chat as it is written. It needs the extra `demo`, a Space does not.

    Args:
        repo: Folder of a run, or Hub id.
        host: Address to listen on; 0.0.0.0 lets other machines use the page.
        port: Port to listen on; 0 takes a free one.
        publish: Hub id, as USER/NAME, of a Space to make or to update, in place of serving.
        public: Publish the Space for everybody to see.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
        precision: Precision of the base, in place of the one that the adapter was trained on.
    """
    check_result(repo)
    if publish is not None:
        if base is not None:
            stop(["--base: does not go with --publish: a Space loads the base that REPO names."], 2)
        from pipelines.demo.space import publish_space

        publish_space(repo, publish, public=public, revision=revision, precision=precision)
        return
    check_extra("gradio", extra="demo", verb="demo")
    from pipelines.addresses import usable_port

    port = usable_port(host, port)
    from pipelines.demo.serve import serve

    serve(repo, host=host, port=port, revision=revision, base=base, precision=precision)


def report(
    *folders: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER [FOLDER ...]")],
    out: Path | None = None,
) -> None:
    """Write the report of a run as HTML, or a page that compares runs.

    Args:
        folders: Folders of finished runs; of several, the first one is the baseline.
        out: File to write to; by default report.html in the folder of the run, or comparison.html
            here.
    """
    if not folders:
        stop(["report takes the FOLDER of a run, or several to compare."], 2)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        stop([f"--out: {out} is a folder, or in none. Give the path of a file."], 2)
    from pipelines.html_report.write import write_comparison, write_report

    try:
        one = len(folders) == 1
        file = write_report(folders[0], out) if one else write_comparison(folders, out)
    except OSError as error:
        stop(
            [f"{error.filename}: {error.strerror}. Give a file that can be written with --out."], 2
        )
    print(file)


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
    """Print labels or answers, with scores, for the rows of a file.

    They are JSON lines. An --out that ends in .csv or .tsv is a table.

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
    """Merge an adapter into its base, in full precision.

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


def export(
    repo: Repo,
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    to: FormatName,
    quantize: str | None = None,
    revision: str | None = None,
    base: str | None = None,
) -> None:
    """Write a result as GGUF, ONNX or merged safetensors.

    The file is compared with the model before it is put into OUT.

    Args:
        repo: Folder of a run, or Hub id.
        out: Folder to write to; empty or new.
        to: Format. gguf holds language models; safetensors is what merge writes.
        quantize: Precision of the weights: fp32 or int8 in ONNX; F32, F16, BF16, Q8_0, Q5_1, Q5_0,
            Q4_1 or Q4_0 in GGUF. By default that of the model, float32.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of the base, in place of the one that the adapter names.
    """
    check_export(out, to, quantize)
    for package in FORMATS[to].packages:
        check_extra(package, extra=to, verb="export")
    check_task(to, read_task(repo, revision))
    from pipelines.exporting.export import export as export_result

    export_result(repo, out, to=to, quantize=quantize, revision=revision, base=base)


def compress(
    repo: Repo,
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    prune_heads: float | None = None,
    prune_neurons: float | None = None,
    sparsity: float | None = None,
    recover_steps: int | None = None,
    recover_learning_rate: float | None = None,
    distill: bool = False,
    bits: Literal[8, 4] | None = None,
    revision: str | None = None,
    base: str | None = None,
) -> None:
    """Make a result smaller and faster, and show what it costs.

    Fractions are of what weighs least in each layer. An adapter is merged first.

    Args:
        repo: Folder of a run, or Hub id.
        out: Folder to write to; empty or new.
        prune_heads: Fraction of the attention heads to remove, with as much of the width.
        prune_neurons: Fraction of the neurons between the two layers of each MLP to remove.
        sparsity: Fraction of the weights inside the blocks to set to zero; the size stays.
        recover_steps: Steps to train what is left, on the training rows of the run.
        recover_learning_rate: Peak learning rate of these steps; by default the recipe's.
        distill: Train towards the result as it was, next to the labels.
        bits: Store the weights inside the blocks in so many bits, by bitsandbytes, after the rest.
        revision: Commit, branch or tag on the Hub.
        base: Folder or Hub id of an adapter's base, in place of the one that it names.
    """
    check_result(repo)
    from pipelines.compression.options import Compression

    compression = Compression(
        prune_heads=prune_heads,
        prune_neurons=prune_neurons,
        sparsity=sparsity,
        recover_steps=recover_steps,
        recover_learning_rate=recover_learning_rate,
        distill=distill,
        bits=bits,
    )
    from pipelines.compression.command import compress as compress_result

    compress_result(repo, out, compression, revision=revision, base=base)


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
