"""Compare ways to use a result: itself, transformers.pipeline, onnxruntime and llama.cpp.

    python scripts/benchmarks/exported.py CLASSIFIER LANGUAGE_MODEL [--rows 500] [--tokens 128]

Both are folders of runs or Hub ids. The classifier tokenises and reads the rows of its run, in
batches of 32: as itself with its adapter merged, as ONNX in fp32 and int8, and in a pipeline, also
with one row a batch, which is its default. The language model writes greedily after one prompt, as
itself, as ONNX, in a pipeline and, where llama-cpp-python is installed, as GGUF. Each repetition
times all variants one after the other; the tables have size or score, medians, and the median of
the ratios to the result itself. OMP_NUM_THREADS sets the threads of all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import pipeline

from pipelines.console import say
from pipelines.exporting.export import export, whole_model
from pipelines.exporting.onnx_model import OnnxModel
from pipelines.hub.load import LoadedResult, load_result
from pipelines.inference.merge import rows_of_run
from pipelines.inference.predict import logits_by_batches, logits_of_rows
from pipelines.results.disk import megabytes

Variant = Callable[[], int]
"""Does the work once, and returns the number of rows or tokens."""
PIPELINE = "transformers.pipeline"


def main() -> None:
    """Export, time and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classifier")
    parser.add_argument("language_model")
    parser.add_argument("--base", help="base of the adapters, in place of those that they name")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for unit, make in (("rows/s", classifiers), ("tokens/s", writers)):
            variants, notes = make(options, Path(work))
            print_table(unit, time_alternately(variants, options.repetitions), notes)


def classifiers(options: argparse.Namespace, work: Path) -> tuple[dict[str, Variant], dict]:
    """Return what classifies the rows of the run, and the size and the score of each."""
    loaded = load_result(options.classifier, base=options.base, precision="fp32", device="cpu")
    rows, task = rows_of_run(loaded), loaded.recipe.task
    if rows is None:
        raise SystemExit("the rows of the classifier's run are not on this machine.")
    rows = replace(rows, rows=list(islice(rows.rows, options.rows)))
    collate = task.collate(int(loaded.tokenizer.pad_token_id or 0))
    primary = loaded.metrics["primary"]
    notes = {"ours": f"{primary} {loaded.metrics[primary]:.4f}"}
    models: dict[str, Any] = {"ours": whole_model(loaded)}
    for precision in ("fp32", "int8"):
        name, folder = f"ONNX {precision}", work / f"classifier-{precision}"
        record = export(
            options.classifier, folder, to="onnx", quantize=precision, base=options.base
        )
        size = megabytes((folder / "model.onnx").stat().st_size)
        notes[name] = size
        if score := record["checks"].get("int8"):
            low, high = score["confidence_interval"]
            notes[name] += f", {primary} {score[primary]:.4f} (95 % {low:.4f} to {high:.4f})"
        models[name] = OnnxModel(folder / "model.onnx")

    def classify(model: Any) -> int:
        read = logits_by_batches if isinstance(model, OnnxModel) else logits_of_rows
        given = task.features(rows, loaded.tokenizer, loaded.labels, training=False)
        with torch.inference_mode():
            return len(read(task, model, given.dataset, collate))

    stock = pipeline("text-classification", model=str(saved(loaded, work)), device="cpu")
    texts = [row[task.text_column] for row in rows.rows]
    variants = {name: partial(classify, model) for name, model in models.items()}
    for batch_size, name in ((1, PIPELINE), (32, f"{PIPELINE}, batches of 32")):
        options_of_call = {"batch_size": batch_size, "truncation": True}
        variants[name] = lambda call=options_of_call: len(stock(texts, **call))
    return variants, notes


def writers(options: argparse.Namespace, work: Path) -> tuple[dict[str, Variant], dict]:
    """Return what writes tokens after a prompt, and the size of each."""
    loaded = load_result(options.language_model, base=options.base, precision="fp32", device="cpu")
    model, num_tokens = whole_model(loaded), options.tokens
    formats = [("onnx", "fp32"), ("onnx", "int8")]
    if importlib.util.find_spec("llama_cpp") is not None:
        formats += [("gguf", "F32"), ("gguf", "F16"), ("gguf", "Q8_0")]
    lengths = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
    variants: dict[str, Variant] = {}
    notes = {}
    for to, precision in formats:
        folder = work / f"{to}-{precision}"
        record = export(
            options.language_model, folder, to=to, quantize=precision, base=options.base
        )
        file = folder / record["file"]
        name = f"{'llama.cpp' if to == 'gguf' else 'ONNX'} {precision}"
        notes[name] = megabytes(file.stat().st_size)
        ids = loaded.tokenizer(record["prompt"], add_special_tokens=False)["input_ids"]
        write = written_by_llama if to == "gguf" else written_by_onnx
        variants[name] = write(file, ids, num_tokens)

    def ours() -> int:
        with torch.inference_mode():
            return model.generate(torch.tensor([ids]), **lengths).shape[1] - len(ids)

    stock = pipeline("text-generation", model=str(saved(loaded, work)), device="cpu")

    def in_pipeline() -> int:
        (text,) = stock(record["prompt"], return_tensors=True, **lengths)
        return len(text["generated_token_ids"]) - len(ids)

    return {"ours": ours, PIPELINE: in_pipeline, **variants}, notes


def saved(loaded: LoadedResult, work: Path) -> Path:
    """Return a folder of the merged model and its tokenizer, as transformers saves them."""
    folder = work / f"{loaded.recipe.name}-saved"
    whole_model(loaded).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def written_by_onnx(file: Path, ids: list[int], num_tokens: int) -> Variant:
    """Return what writes tokens with a cache in onnxruntime."""
    model = OnnxModel(file)

    def write() -> int:
        given, past = torch.tensor([ids]), []
        for number in range(num_tokens):
            mask = torch.ones(1, len(ids) + number, dtype=torch.long)
            outputs = model(given, mask, past)
            given = outputs["logits"][:, -1].argmax(-1, keepdim=True)
            past = [outputs[name] for name in model.outputs if name.startswith("present.")]
        return num_tokens

    return write


def written_by_llama(file: Path, ids: list[int], num_tokens: int) -> Variant:
    """Return what writes tokens in llama.cpp."""
    from llama_cpp import Llama

    threads = torch.get_num_threads()
    model = Llama(str(file), n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False)

    def write() -> int:
        model.reset()
        tokens = model.generate(ids, temp=0, repeat_penalty=1.0)
        return sum(1 for _ in islice(tokens, num_tokens))

    return write


def time_alternately(variants: dict[str, Variant], repetitions: int) -> dict[str, list[float]]:
    """Return the rows or tokens per second of each variant in each repetition, after one more."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1 + repetitions):
        for name, variant in variants.items():
            started = time.perf_counter()
            count = variant()
            if number:  # the first one warms up
                rates[name].append(count / (time.perf_counter() - started))
    return rates


def print_table(unit: str, rates: dict[str, list[float]], notes: dict[str, str]) -> None:
    """Print medians, and the medians of the ratios to the first variant."""
    first = next(iter(rates.values()))
    say(f"| variant | {unit} | ratio | |\n|---|---|---|---|")
    for name, found in rates.items():
        ratio = median(one / other for one, other in zip(found, first, strict=True))
        say(f"| {name} | {median(found):,.1f} | {ratio:.2f} | {notes.get(name, '')} |")


if __name__ == "__main__":
    main()
