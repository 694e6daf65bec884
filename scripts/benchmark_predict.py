"""What `gpt2-recipes predict` costs: peak memory by rows, and rows a second beside a pipeline.

    python scripts/benchmark_predict.py

A GPT-2 of 4 layers, 256 wide, and generated tickets.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpdesk_data import write

from pipelines.recipe import Recipe, Scratch, Tokenizer, Train
from pipelines.tasks import DatasetSource, TextClassification

PREDICT = (sys.executable, "-c", "from pipelines.cli import console; console()", "predict")


def make_result(data: Path, folder: Path) -> None:
    """Write a classifier that was trained for a step."""
    from pipelines.run import run

    recipe = Recipe(
        name="benchmark",
        task=TextClassification(
            dataset=DatasetSource(path=str(data / "classify"), eval_split="test"),
            label_column="queue",
        ),
        model=Scratch(size="mini", n_positions=256, tokenizer=Tokenizer(vocab_size=2048)),
        train=Train(max_steps=1, save_steps=None),
        output_dir=str(folder),
    )
    run(recipe)


def make_rows(data: Path, num_rows: int, file: Path) -> list[str]:
    """Write so many texts, of 3 to 62 words each, and return them."""
    tickets = [json.loads(line)["text"] for line in (data / "classify/test.jsonl").open()]
    words = itertools.cycle(" ".join(tickets).split())
    texts = [" ".join(itertools.islice(words, 3 + 37 * i % 60)) for i in range(num_rows)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


def peak(result: Path, file: Path, out: Path) -> tuple[float, float]:
    """Return peak memory in MB and seconds of the command, imports included."""
    start = time.perf_counter()
    child = subprocess.Popen([*PREDICT, str(result), str(file), "--out", str(out)])
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def rates(result: Path, file: Path, texts: list[str], out: Path) -> dict[str, float]:
    """Return rows a second without imports and loading, each the best of three."""
    from transformers import pipeline

    from pipelines.hub import load_adapter
    from pipelines.output import answer_file
    from pipelines.predict import predict

    loaded = load_adapter(result)
    plain = pipeline("text-classification", model=str(result), truncation=True, max_length=128)

    def ours() -> None:
        for each in (out, out.with_name(f"{out.name}.progress.json")):
            each.unlink(missing_ok=True)
        answer_file(file, lambda rows: predict(loaded, rows), out, {}, chunk_size=512)

    ways = {
        "predict": ours,
        "pipeline, as it comes": lambda: plain(texts),
        "pipeline, batch_size=32": lambda: plain(texts, batch_size=32),
    }
    seconds = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: len(texts) / min(found) for name, found in seconds.items()}


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write(place / "data", seed=1, num_train=200, num_test=200, num_documents=10)
        make_result(place / "data", place / "result")
        for num_rows in (1_000, 10_000):
            file = place / f"{num_rows}.jsonl"
            make_rows(place / "data", num_rows, file)
            memory, seconds = peak(place / "result", file, place / f"{num_rows}.out.jsonl")
            print(f"{num_rows:,} rows: {memory:,.0f} MB at most, {seconds:.1f} s with imports")
        file = place / "2000.jsonl"
        texts = make_rows(place / "data", 2_000, file)
        for way, rate in rates(place / "result", file, texts, place / "2000.out.jsonl").items():
            print(f"{way}: {rate:,.0f} rows a second")


if __name__ == "__main__":
    main()
