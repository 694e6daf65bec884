"""Measure how a corpus is prepared, found again and read, and print a table with the bars.

    python scripts/benchmarks/corpus.py TOKENIZER [--megabytes 60 300] [--repetitions 3]

TOKENIZER is the folder of a tokenizer, such as GPT-2's. The documents are those of
scripts/helpdesk_data.py. Each measurement is a process of its own; variants alternate, and ratios
are the medians of the repetitions. `run_clm` is the pair of `datasets.map` passes of transformers'
example, with as many processes as there are cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 1024


def write_documents(file: Path, megabytes: int) -> None:
    """Write documents of several paragraphs until a file has a size."""
    spec = importlib.util.spec_from_file_location("helpdesk", ROOT / "scripts/helpdesk_data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["helpdesk"] = module
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder, file.open("w", encoding="utf-8") as out:
        for seed in count():
            module.write(Path(folder), seed=seed, num_train=1, num_test=1, num_documents=20_000)
            text = (Path(folder) / "documents" / "train.jsonl").read_text(encoding="utf-8")
            out.write(text)
            if out.tell() >= megabytes * 1e6:
                return


def peak_megabytes(field: str = "VmHWM") -> float:
    """Return a field of this process's memory in MB; by default the peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1000


def prepare(file: str, tokenizer: str):
    """Prepare a corpus as a run does; return the encoded rows and the seconds."""
    import pipelines.flow  # noqa: F401 - a run imports it
    from pipelines.collector import collector_without_imports
    from pipelines.data.source import DatasetSource
    from pipelines.inputs import encode, read_rows
    from pipelines.preparing.splits import check_prepared
    from pipelines.preparing.store import Store
    from pipelines.process import prepare_process, returning_freed_memory
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import Model, Scratch
    from pipelines.tasks.causal_lm import CausalLM

    size = Scratch(size="tiny", n_positions=BLOCK, tokenizer=Model(name_or_path=tokenizer))
    task = CausalLM(dataset=DatasetSource(path=file), block_size=BLOCK)
    started = time.perf_counter()
    with prepare_process(), collector_without_imports(), returning_freed_memory():
        store = Store()
        recipe, raw = read_rows(Recipe(name="corpus", model=size, task=task), store)
        splits, labels = check_prepared(recipe.task, raw, None, store)
        encoded = encode(recipe, splits, labels, store)
    return encoded, time.perf_counter() - started


def ours(file: str, tokenizer: str) -> dict:
    """Prepare a corpus, or find it."""
    encoded, seconds = prepare(file, tokenizer)
    tokens = encoded.train.report["tokens"] + encoded.scored["eval"].report["tokens"]
    return {"seconds": seconds, "tokens": tokens, "peak": peak_megabytes()}


def run_clm(file: str, tokenizer: str) -> dict:
    """Tokenise and group as transformers' run_clm.py does."""
    from itertools import chain

    from datasets import load_dataset
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    started = time.perf_counter()
    raw = load_dataset("json", data_files=file, split="train")

    def tokenize(examples):
        return loaded(examples["text"])

    def group_texts(examples):
        concatenated = {k: list(chain(*examples[k])) for k in examples}
        total = len(concatenated["input_ids"]) // BLOCK * BLOCK
        result = {
            k: [t[i : i + BLOCK] for i in range(0, total, BLOCK)] for k, t in concatenated.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    options = {"batched": True, "num_proc": os.cpu_count()}
    tokens = raw.map(tokenize, remove_columns=["text"], **options)
    blocks = tokens.map(group_texts, **options)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": len(blocks) * BLOCK, "peak": peak_megabytes()}


def reading(file: str, tokenizer: str) -> dict:
    """Read prepared blocks in batches of 8, as training does, in the order of a shuffle."""
    from transformers import TrainingArguments

    from pipelines.tasks.causal_lm import LanguageModelingCollator
    from pipelines.training.loaders import WithRowNumbers, data_loader, numbered
    from pipelines.training.row_order import RowOrder

    encoded, _ = prepare(file, tokenizer)
    rows = numbered(encoded.train.dataset)
    with tempfile.TemporaryDirectory() as folder:
        loader = data_loader(
            TrainingArguments(folder, report_to=[], use_cpu=True),
            rows,
            WithRowNumbers(LanguageModelingCollator(0), lambda row: len(row["input_ids"])),
            batch_size=8,
            sampler=RowOrder(len(rows), 0, epoch=int),
        )
        started = time.perf_counter()
        tokens = sum(batch["input_ids"].numel() for batch in loader)
    return {"tokens/s": tokens / (time.perf_counter() - started), "peak": peak_megabytes()}


def private(file: str, tokenizer: str) -> dict:
    """Return the private memory of a process that has prepared blocks and reads some of them."""
    import psutil

    encoded, _ = prepare(file, tokenizer)
    tokens = sum(len(row["input_ids"]) for row in encoded.train.dataset)
    time.sleep(5)  # until the other rank has done so, too
    return {"private": psutil.Process().memory_full_info().uss / 1e6, "tokens": tokens}


MEASURES = {each.__name__: each for each in (ours, run_clm, reading, private)}


def start(name: str, file: Path, tokenizer: str, cache: Path, *, one_core: bool = False):
    """Start a measurement in a process of its own, on one core or on all."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(cache),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": str(name == "ours" and not one_core).lower(),
    }
    core = {min(os.sched_getaffinity(0))}
    return subprocess.Popen(
        [sys.executable, __file__, tokenizer, "--measure", name, str(file)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, core)) if one_core else None,
    )


def result(process) -> dict:
    """Return what a measurement has printed last."""
    printed = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a measurement ended with {process.returncode}:\n{printed}")
    return json.loads(printed.splitlines()[-1])


def compare(tokenizer: str, megabytes: int, repetitions: int, work: Path) -> None:
    """Print the measurements of a corpus of one size."""
    file, cache = work / f"documents-{megabytes}.jsonl", work / "cache"
    write_documents(file, megabytes)
    variants = {
        "all cores": ("ours", False),
        "one core": ("ours", True),
        "run_clm": ("run_clm", False),
    }
    measured = {name: [] for name in (*variants, "found")}
    for _ in range(repetitions):
        for variant, (name, one_core) in variants.items():
            shutil.rmtree(cache, ignore_errors=True)
            running = start(name, file, tokenizer, cache, one_core=one_core)
            measured[variant].append(result(running))
            if variant == "one core":
                measured["found"].append(result(start("ours", file, tokenizer, cache)))
    shutil.rmtree(cache)
    result(start("ours", file, tokenizer, cache))
    readers = [result(start("reading", file, tokenizer, cache)) for _ in range(repetitions)]
    alone = result(start("private", file, tokenizer, cache))["private"]
    two = [start("private", file, tokenizer, cache) for _ in range(2)]
    both = max(result(each)["private"] for each in two)
    seconds = {name: median(each["seconds"] for each in runs) for name, runs in measured.items()}
    peaks = {name: max(each["peak"] for each in runs) for name, runs in measured.items()}
    ratios = {
        name: median(
            other["seconds"] / mine["seconds"]
            for other, mine in zip(measured[name], measured["all cores"], strict=True)
        )
        for name in ("one core", "run_clm")
    }
    lines = (
        ("prepared on all cores, s", seconds["all cores"], ""),
        ("one core / all cores", ratios["one core"], ">= 1.7"),
        ("run_clm / all cores", ratios["run_clm"], ">= 1.3"),
        ("found again, s", seconds["found"], "< 5"),
        ("peak memory, prepared, MB", peaks["all cores"], "<= 1000"),
        ("peak memory, found, MB", peaks["found"], "<= 1000"),
        ("private memory of each of 2 ranks / of one", both / alone, "< 1.2"),
        ("reading, million tokens/s", median(each["tokens/s"] for each in readers) / 1e6, ">= 5"),
    )
    print(f"\n{megabytes} MB, {measured['all cores'][0]['tokens']:,} tokens")
    for text, value, bar in lines:
        print(f"  {text:<44} {value:>8.2f}  {bar}", flush=True)


def main() -> None:
    """Measure, or print one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[60, 300])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        name, file = flags.measure
        print(json.dumps(MEASURES[name](file, flags.tokenizer)))
        return
    with tempfile.TemporaryDirectory(prefix="corpus-") as work:
        for megabytes in flags.megabytes:
            compare(flags.tokenizer, megabytes, flags.repetitions, Path(work))


if __name__ == "__main__":
    main()
