"""Pretrain a small GPT-2, tune two adapters on its 8-bit base, publish and use them.

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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
DATA = Path("data/helpdesk")
BASE = "helpdesk-pretrain"
HUB = Path("runs/hub")
RUNS = {
    BASE: "recipes/helpdesk_pretrain.py",
    "helpdesk-classify-lora-8bit": "recipes/helpdesk_classify_lora_8bit.py",
    "helpdesk-answer-lora-8bit": "recipes/helpdesk_answer_lora_8bit.py",
}
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
NEXT = """\
Next steps:
    .venv/bin/python recipes/helpdesk_classify_lora_8bit.py --help
    .venv/bin/accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml \\
        recipes/helpdesk_pretrain.py --name faster --train.learning-rate 1e-3\
"""
NEXT_LOCAL = f"""
and, while `.venv/bin/gpt2-recipes hub --folder {HUB}` serves what was published,
    export HF_ENDPOINT=http://127.0.0.1:8643 HF_TOKEN=$(cat {HUB}/token) HF_HUB_DISABLE_XET=1
    .venv/bin/gpt2-recipes evaluate local/helpdesk-answer-lora-8bit
    .venv/bin/gpt2-recipes predict local/helpdesk-answer-lora-8bit runs/quickstart/answer.jsonl\
"""


@contextmanager
def hub() -> Iterator[dict[str, str]]:
    """Yield the environment of a Hub: of the user's, if HF_ENDPOINT is set, or of one here."""
    if "HF_ENDPOINT" in os.environ:
        yield {}
        return
    arguments = ["hub", "--folder", str(HUB), "--port", "0"]
    served = subprocess.Popen([BIN / "gpt2-recipes", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        lines = [served.stdout.readline() for _ in range(2)]
        if not lines[1]:
            raise SystemExit(served.wait())
        exports = shlex.split(lines[1])[1:]
        cache = str(Path("runs/quickstart/cache").absolute())
        yield dict(pair.split("=", 1) for pair in exports) | {"HF_HOME": cache}
    finally:
        served.terminate()
        served.wait()


def command(environment: dict[str, str], name: str, *arguments: str, quiet: bool = False) -> str:
    """Show and run a command of the virtual environment; return what it printed, if `quiet`."""
    print("$", shlex.join([f".venv/bin/{name}", *arguments]), flush=True)
    threads = {"OMP_NUM_THREADS": str(psutil.cpu_count(logical=False))}
    done = subprocess.run(
        [str(BIN / name), *arguments],
        env=os.environ | QUIET | threads | environment,
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
    with hub() as environment:
        repositories = train_and_use(environment)
    show(repositories, time.perf_counter() - started)
    print(NEXT + ("" if "HF_ENDPOINT" in os.environ else NEXT_LOCAL))


def train_and_use(environment: dict[str, str]) -> dict[str, str]:
    """Train, publish, load by id, predict and score again; return the ids."""
    run = partial(command, environment)
    run("python", "scripts/helpdesk_data.py", str(DATA))
    whoami = "import huggingface_hub as h; print(h.whoami()['name'])"
    user = run("python", "-c", whoami, quiet=True).strip()
    ids = {name: f"{user}/{name}" for name in RUNS}
    launch = ("launch", "--config_file", "accelerate_configs/cpu.yaml")
    for name, recipe in RUNS.items():
        base = () if name == BASE else ("--model.name-or-path", ids[BASE])
        run("accelerate", *launch, recipe, *base, "--push-to", ids[name], "--overwrite")

    console = Console(highlight=False)
    for name, column in (("classify", "text"), ("answer", "context")):
        repo = ids[f"helpdesk-{name}-lora-8bit"]
        file, rows = three(name)
        output = run("gpt2-recipes", "predict", repo, str(file), quiet=True)
        for row, line in zip(rows, output.splitlines(), strict=True):
            found = json.loads(line)
            console.print(f"  {row[column]}", markup=False)
            if name == "classify":
                said = f"queue: {found['label']} ({found['score']:.0%}), in truth {row['queue']}"
            else:
                truth = row["answers"]["text"][0] if row["answers"]["text"] else "no answer"
                said = f"{row['question']} {found['answer'] or 'no answer'}, in truth {truth}"
            console.print(f"    {said}", style="bold", markup=False)
        run("gpt2-recipes", "evaluate", repo)
    return ids


def show(repositories: dict[str, str], seconds: float) -> None:
    """Print the table of results and write summary.json."""
    columns = ("task", "metric", "score", "95 % interval", "rows", "baseline", "seconds")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column != "baseline")
    scores: dict[str, Any] = {}
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
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    summary["repositories"] = repositories
    Path("runs/quickstart/summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Console(highlight=False, width=100).print(table)
    print(f"{summary['seconds']:.0f} seconds, peak memory {summary['peak_memory_mb']:,} MB")


if __name__ == "__main__":
    main()
