"""Pretrain a small GPT-2, tune two adapters on its 8-bit base, and show what they can do.

Run by scripts/quickstart.sh, which installs first. Writes runs/quickstart/summary.json.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
DATA = Path("data/helpdesk")
RUNS = {
    "helpdesk-pretrain": "recipes/helpdesk_pretrain.py",
    "helpdesk-classify-lora-8bit": "recipes/helpdesk_classify_lora_8bit.py",
    "helpdesk-answer-lora-8bit": "recipes/helpdesk_answer_lora_8bit.py",
}
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
NEXT = """\
Go on with
    .venv/bin/gpt2-recipes evaluate runs/helpdesk-classify-lora-8bit
    .venv/bin/gpt2-recipes predict runs/helpdesk-answer-lora-8bit {questions}
    .venv/bin/python recipes/helpdesk_classify_lora_8bit.py --help
    .venv/bin/accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml \\
        recipes/helpdesk_classify_lora_8bit.py --train.learning-rate 1e-3\
"""


def command(name: str, *arguments: str, quiet: bool = False) -> str:
    """Show and run a command of the environment; return what it printed, if `quiet`."""
    print("$", shlex.join([f".venv/bin/{name}", *arguments]), flush=True)
    done = subprocess.run(
        [str(BIN / name), *arguments],
        env=os.environ | OFFLINE | {"OMP_NUM_THREADS": str(psutil.cpu_count(logical=False))},
        stdout=subprocess.PIPE if quiet else None,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def three(name: str) -> tuple[Path, list[dict]]:
    """Write the first three test rows of a file without their labels; return them as they were."""
    lines = (DATA / name / "test.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    rows = [json.loads(line) for line in lines]
    file = Path(f"runs/quickstart/{name}.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    asked = [{k: v for k, v in row.items() if k not in ("queue", "answers")} for row in rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked)
    file.write_text(text, encoding="utf-8")
    return file, rows


def main() -> None:
    """Do all of it."""
    started = time.perf_counter()
    command("python", "scripts/helpdesk_data.py", str(DATA))
    for recipe in RUNS.values():
        command("accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml", recipe)

    console = Console(highlight=False)
    for name, column in (("classify", "text"), ("answer", "context")):
        file, rows = three(name)
        output = command(
            "gpt2-recipes", "predict", f"runs/helpdesk-{name}-lora-8bit", str(file), quiet=True
        )
        for row, line in zip(rows, output.splitlines(), strict=True):
            found = json.loads(line)
            console.print(f"  {row[column]}", markup=False)
            if name == "classify":
                said = f"queue: {found['label']} ({found['score']:.0%}), in truth {row['queue']}"
            else:
                truth = row["answers"]["text"][0] if row["answers"]["text"] else "no answer"
                said = f"{row['question']} {found['answer'] or 'no answer'}, in truth {truth}"
            console.print(f"    {said}", style="bold", markup=False)

    columns = ("task", "metric", "score", "95 % interval", "rows", "baseline", "seconds")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column != "baseline")
    scores = {}
    for name in RUNS:
        metrics = json.loads(Path(f"runs/{name}/task.json").read_text(encoding="utf-8"))["metrics"]
        primary = metrics["primary"]
        scores[primary] = round(metrics[primary], 4)
        low, high = metrics["confidence_interval"]
        baseline = ", ".join(f"{key} {value:.4g}" for key, value in metrics["baseline"].items())
        table.add_row(
            name.split("-")[1],
            primary,
            f"{metrics[primary]:.4f}",
            f"{low:.3f} to {high:.3f}",
            f"{metrics['rows']:,}",
            baseline,
            f"{metrics['seconds']:.0f}",
        )
    summary = scores | {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    Path("runs/quickstart/summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(table)
    print(f"{summary['seconds']:.0f} seconds, peak memory {summary['peak_memory_mb']:,} MB")
    print(NEXT.format(questions="runs/quickstart/answer.jsonl"))


if __name__ == "__main__":
    main()
