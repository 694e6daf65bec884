"""Measure the first start and later starts of each task on large data: seconds and memory.

    python scripts/benchmarks/prepared.py TOKENIZER [--tasks question_answering] [--megabytes 60]
        [--repetitions 3] [--other CHECKOUT]

TOKENIZER is the folder of a tokenizer, such as GPT-2's. The rows are those of
scripts/helpdesk_data.py. A start reads, checks, splits and encodes the rows, and makes what a
trainer takes; each is a process of its own, without its imports. `--other` measures another
checkout of this project, too, in alternation. Peaks are of all memory of a process; private memory
is what it has for itself at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "text_classification": "classify",
    "question_answering": "answer",
    "instruction_tuning": "reply",
    "preference_tuning": "prefer",
}
"""The folder of helpdesk_data.py for each task."""


def write_rows(file: Path, folder: str, megabytes: int) -> None:
    """Write rows of a task until a file has a size."""
    spec = importlib.util.spec_from_file_location("helpdesk", ROOT / "scripts/helpdesk_data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["helpdesk"] = module
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as place, file.open("w", encoding="utf-8") as out:
        for seed in count():
            module.write(Path(place), seed=seed, num_train=20_000, num_test=1, num_documents=1)
            out.write((Path(place) / folder / "train.jsonl").read_text(encoding="utf-8"))
            if out.tell() >= megabytes * 1e6:
                return


def write_model(folder: Path, tokenizer: str) -> None:
    """Write a checkpoint of a tiny model with a tokenizer; no step is trained here."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(loaded), n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)


def task_on(file: str, name: str):
    """Return a task on the rows of a file."""
    from pipelines.data.source import DatasetSource
    from pipelines.recipe.values import Lora
    from pipelines.tasks.instruction import InstructionTuning
    from pipelines.tasks.preference import PreferenceTuning
    from pipelines.tasks.question_answering import QuestionAnswering
    from pipelines.tasks.text_classification import TextClassification

    source = DatasetSource(path=file)
    tasks = {
        "text_classification": lambda: TextClassification(dataset=source, label_column="queue"),
        "question_answering": lambda: QuestionAnswering(
            dataset=source, version_2_with_negative=True
        ),
        "instruction_tuning": lambda: InstructionTuning(dataset=source),
        "preference_tuning": lambda: PreferenceTuning(dataset=source),
    }
    return tasks[name](), Lora() if name == "preference_tuning" else None


def start_run(file: str, checkpoint: str, name: str) -> dict:
    """Prepare rows as a run does, up to what its trainer takes; return seconds and megabytes."""
    import psutil
    from corpus import peak_megabytes

    import pipelines.flow  # noqa: F401 - a run imports it
    from pipelines.inputs import encode, read_rows
    from pipelines.preparing.splits import check_prepared
    from pipelines.preparing.store import Store
    from pipelines.process import prepare_process, returning_freed_memory
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import Model
    from pipelines.training.loaders import numbered
    from pipelines.training.parts import ScoredSplit
    from pipelines.training.trl import arrow_tables

    task, lora = task_on(file, name)
    model = Model(name_or_path=checkpoint)
    imported = peak_megabytes()
    started = time.perf_counter()
    with prepare_process(), returning_freed_memory():
        store = Store()
        recipe, raw = read_rows(Recipe(name="prepared", model=model, task=task, lora=lora), store)
        splits, labels = check_prepared(recipe.task, raw, None, store)
        encoded = encode(recipe, splits, labels, store)
    held_out = ScoredSplit(recipe.task, encoded.scored["eval"], labels).dataset
    options = {"train_dataset": numbered(encoded.train.dataset), "eval_dataset": held_out}
    if recipe.task.objective in ("instruction", "preference"):
        options = arrow_tables(options)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "rows": encoded.train.num_rows,
        "peak": peak_megabytes(),
        "private": psutil.Process().memory_full_info().uss / 1e6,
        "imported": imported,
    }


def measure(file: Path, model: Path, name: str, cache: Path, checkout: Path) -> dict:
    """Measure a start of a checkout in a process of its own."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(cache),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(checkout),
        "TOKENIZERS_PARALLELISM": "true",
    }
    command = [sys.executable, __file__, str(model), "--measure", name, str(file)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"a measurement ended with {done.returncode}:\n{done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(flags: argparse.Namespace, name: str, work: Path) -> None:
    """Print the starts of each checkout on the rows of a task."""
    file = work / f"{name}.jsonl"
    write_rows(file, FOLDERS[name], flags.megabytes)
    checkouts = {"this": ROOT} | ({"other": flags.other.resolve()} if flags.other else {})
    starts = {f"{of}, {which} start": [] for of in checkouts for which in ("first", "second")}
    for _ in range(flags.repetitions):
        for of, checkout in checkouts.items():
            cache = work / "cache"
            for which in ("first", "second"):
                found = measure(file, work / "model", name, cache, checkout)
                starts[f"{of}, {which} start"].append(found)
            shutil.rmtree(cache, ignore_errors=True)
    rows = next(iter(starts.values()))[0]["rows"]
    print(f"\n{name}: {file.stat().st_size / 1e6:.0f} MB, {rows:,} training rows")
    for text, runs in starts.items():
        seconds = median(each["seconds"] for each in runs)
        peak, private, imported = (
            max(each[field] for each in runs) for field in ("peak", "private", "imported")
        )
        print(
            f"  {text:<20} {seconds:>7.1f} s, peak {peak:>6,.0f} MB, private {private:>6,.0f} MB, "
            f"of which imports {imported:,.0f} MB",
            flush=True,
        )
    file.unlink()


def main() -> None:
    """Measure, or print one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer")
    parser.add_argument("--tasks", nargs="+", choices=[*FOLDERS], default=[*FOLDERS])
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--other", type=Path, help="another checkout, to compare with")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        name, file = flags.measure
        print(json.dumps(start_run(file, flags.tokenizer, name)))
        return
    with tempfile.TemporaryDirectory(prefix="prepared-") as work:
        write_model(Path(work) / "model", flags.tokenizer)
        for name in flags.tasks:
            compare(flags, name, Path(work))


if __name__ == "__main__":
    main()
