"""Measure the tokens/s of two CPU processes against one, with as many rows for each process.

    python scripts/benchmarks/weak_scaling.py [--rows 4 16] [--tokens 128 256] [--repetitions 3]

A language model of 4 layers, 256 wide, vocabulary 4,096, all weights trained, on the documents of
scripts/helpdesk_data.py. Runs of one and of two processes alternate, each process with one thread.
Speeds are the medians of a run's logs without the first; efficiency is the speed of two processes
by twice that of one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {1: "cpu.yaml", 2: "cpu_2_processes.yaml"}
STEPS, LOGGED = 40, 5
RECIPE = f"""
from pipelines import CausalLM, DatasetSource, Recipe, Scratch, Tokenizer, Train

RECIPE = Recipe(
    name="weak-scaling",
    task=CausalLM(dataset=DatasetSource(path="data/documents", max_eval_rows=32)),
    model=Scratch(size="mini", tokenizer=Tokenizer(vocab_size=4096)),
    train=Train(max_steps={STEPS}, save_steps=None, logging_steps={LOGGED}),
)
"""


def tokens_per_second(folder: Path, num_processes: int, rows: int, tokens: int) -> float:
    """Train in a folder; return the median speed of all processes together."""
    out = folder / f"out-{num_processes}-{rows}-{tokens}"
    flags = {
        "--output-dir": out,
        "--task.block-size": tokens,
        "--model.n-positions": tokens,
        "--train.global-batch-size": rows * num_processes,
        "--train.per-device-train-batch-size": rows,
    }
    config = ROOT / "accelerate_configs" / CONFIGS[num_processes]
    command = [sys.executable, "-m", "pipelines", "train", "recipe.py", "--config-file", config]
    command += [each for pair in flags.items() for each in pair] + ["--overwrite"]
    subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    logs = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    speeds = [each["tokens_per_second"] for each in logs if "tokens_per_second" in each]
    return median(speeds[1:])


def main() -> None:
    """Measure each number of rows and tokens, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    print("| rows x tokens of a process | one process, tokens/s | two processes | efficiency |")
    print("|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="weak-scaling-") as work:
        folder = Path(work)
        (folder / "recipe.py").write_text(RECIPE)
        script = ROOT / "scripts" / "helpdesk_data.py"
        subprocess.run([sys.executable, script, "data"], cwd=folder, check=True)
        for tokens in options.tokens:
            for rows in options.rows:
                pairs = [
                    [tokens_per_second(folder, each, rows, tokens) for each in CONFIGS]
                    for _ in range(options.repetitions)
                ]
                one, two = (median(each) for each in zip(*pairs, strict=True))
                ratios = sorted(both / (2 * alone) for alone, both in pairs)
                span = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"| {rows} x {tokens} | {one:,.0f} | {two:,.0f} | {span} |", flush=True)


if __name__ == "__main__":
    main()
