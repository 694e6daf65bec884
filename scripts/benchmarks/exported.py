"""Compare exported results with the results themselves: size, speed and score, alternating.

    python scripts/benchmarks/exported.py CLASSIFIER LANGUAGE_MODEL [--rows 500] [--tokens 128]

Both are folders of runs or Hub ids. The classifier reads the rows of its run, in batches of 32, as
itself with its adapter merged, and as ONNX in fp32 and int8. The language model writes greedily
after one prompt, as itself, as ONNX, and, where llama-cpp-python is installed, as GGUF. Each
repetition times all variants one after the other; the table has medians, and the median of the
ratios to the result itself. OMP_NUM_THREADS sets the threads of all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipelines.console import say
from pipelines.exporting.export import export, whole_model
from pipelines.exporting.onnx_model import OnnxModel
from pipelines.hub.load import load_result
from pipelines.inference.merge import rows_of_run
from pipelines.inference.predict import logits_by_batches, logits_of_rows
from pipelines.results.disk import megabytes

Variant = Callable[[], int]
"""Does the work once, and returns the number of rows or tokens."""


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
    given = task.features(
        replace(rows, rows=list(islice(rows.rows, options.rows))),
        loaded.tokenizer,
        loaded.labels,
        training=False,
    )
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
        with torch.inference_mode():
            return len(read(task, model, given.dataset, collate))

    return {name: (lambda m=model: classify(m)) for name, model in models.items()}, notes


def writers(options: argparse.Namespace, work: Path) -> tuple[dict[str, Variant], dict]:
    """Return what writes tokens after a prompt, and the size of each."""
    loaded = load_result(options.language_model, base=options.base, precision="fp32", device="cpu")
    model, num_tokens = whole_model(loaded), options.tokens
    formats = [("onnx", "fp32"), ("onnx", "int8")]
    if importlib.util.find_spec("llama_cpp") is not None:
        formats += [("gguf", "F32"), ("gguf", "F16"), ("gguf", "Q8_0")]
    lengths = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
    variants: dict[str, Variant] = {}
    notes = {"ours": ""}
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

    return {"ours": ours, **variants}, notes


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
        say(f"| {name} | {median(found):,.1f} | {ratio:.2f} | {notes[name]} |")


if __name__ == "__main__":
    main()
