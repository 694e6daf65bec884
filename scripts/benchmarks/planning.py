"""Compare what `gpt2-recipes plan` predicts with what a run takes, and print a table.

    python scripts/benchmarks/planning.py DATA [--tasks sst2 ...] [--sizes tiny ...] [--methods ...]

DATA holds sst2/, shakespeare/input.txt, xquad/xquad.en.json, e2e/ and gpt2_tokenizer/. Models have
random weights. Each prediction and each run of 3 steps is a process of its own; a run's memory is
the peak of its resident memory. `--work FOLDER` keeps models and measurements there, and a later
call with it measures no run twice: predictions of a changed program meet the same measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {
    "tiny": (2, 2, 128),
    "mini": (4, 4, 256),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
}
METHODS = {
    "full": "",
    "lora": "lora=Lora(), ",
    "8bit": "lora=Lora(), quantization=Int8(), ",
    "4bit": "lora=Lora(), quantization=NF4(), ",
    "full-checkpointed": "",
    "lora-checkpointed": "lora=Lora(), ",
}
"""Fields of a recipe by method; the last two compute activations again."""
TASKS = {
    "sst2": (
        "TextClassification(dataset=DatasetSource(path='{data}/sst2', eval_split='validation', "
        "max_train_rows=4000, max_eval_rows=32), text_column='sentence', max_length=128)",
        16,
    ),
    "shakespeare": (
        "CausalLM(dataset=DatasetSource(path='{data}/shakespeare/input.txt', eval_fraction=0.02), "
        "block_size=512)",
        4,
    ),
    "shakespeare-1024": (
        "CausalLM(dataset=DatasetSource(path='{data}/shakespeare/input.txt', eval_fraction=0.02), "
        "block_size=1024)",
        4,
    ),
    "xquad": (
        "QuestionAnswering(dataset=DatasetSource(path='{data}/xquad/xquad.en.json', "
        "eval_fraction=0.02), max_length=384, stride=128)",
        4,
    ),
    "e2e": (
        "InstructionTuning(dataset=DatasetSource(path='{data}/e2e', train_split='valid', "
        "eval_split='test', max_eval_rows=32), prompt_format='{{meaning_representation}}\\n', "
        "completion_column='reference', max_length=512)",
        8,
    ),
}
CASES = {
    "sst2": [(size, method) for size in SIZES for method in list(METHODS)[:4]],
    "xquad": [("small", method) for method in METHODS if method != "full-checkpointed"],
    "shakespeare": [
        ("tiny", "full"),
        *(("small", method) for method in METHODS if method != "lora-checkpointed"),
    ],
    "shakespeare-1024": [("small", "full")],
    "e2e": [("small", "lora")],
}
"""Sizes and methods of each task."""
RECIPE = """from pipelines import *
from pipelines.recipe.values import NF4
RECIPE = Recipe(name="planned", task={task}, model=Model(name_or_path="{model}"),
    train=Train(max_steps=3, global_batch_size={batch}, warmup_steps=0, save_steps={save},
        activation_checkpointing={checkpointed}),
    output_dir="{out}", overwrite=True, {method})
"""
MAKE = """import transformers as t
c = t.GPT2Config(n_layer={0}, n_head={1}, n_embd={2})
t.GPT2LMHeadModel(c).save_pretrained("{3}")
t.AutoTokenizer.from_pretrained("{4}").save_pretrained("{3}")
"""


def command(verb: str, recipe: Path, *flags: str) -> tuple[str, int]:
    """Run a verb; return what it prints and the peak of its resident memory in bytes."""
    words = [sys.executable, "-m", "pipelines", verb, str(recipe), *flags]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{errors.read()[-3000:]}")
        return out.read(), 1024 * usage.ru_maxrss


def seconds_of_steps(folder: Path) -> float:
    """Return the seconds of a run's training, without its first step."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    ends = {row["step"]: row["seconds"] for row in map(json.loads, lines) if "loss" in row}
    return (ends[3] - ends[1]) / 2


def recipe_of(task: str, size: str, method: str, data: Path, work: Path) -> Path:
    """Return a recipe of a run of 3 steps; its model is made if it is not there."""
    model = work / size
    if not model.is_dir():
        code = MAKE.format(*SIZES[size], model, data / "gpt2_tokenizer")
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    rows, batch = TASKS[task]
    recipe = work / f"{task}-{size}-{method}.py"
    recipe.write_text(
        RECIPE.format(
            task=rows.format(data=data),
            model=model,
            batch=batch,
            save="None" if size == "large" else 3,
            out=recipe.with_suffix(""),
            method=METHODS[method],
            checkpointed=method.endswith("-checkpointed"),
        )
    )
    return recipe


def measured(recipe: Path) -> dict[str, float]:
    """Return the peak in bytes and the seconds of a step of a run, which is done only once."""
    kept = recipe.with_suffix(".json")
    if not kept.is_file():
        _, peak = command("train", recipe, "--train.logging-steps", "1")
        out = recipe.with_suffix("")
        kept.write_text(json.dumps({"peak": peak, "step": seconds_of_steps(out)}))
        shutil.rmtree(out)
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def compare(task: str, size: str, method: str, data: Path, work: Path) -> str:
    """Return a row of the table."""
    recipe = recipe_of(task, size, method, data, work)
    real = measured(recipe)
    planned = json.loads(command("plan", recipe, "--json")[0])
    predicted, step = planned["peak_memory"]["peak"], planned["seconds"]["step"]
    return (
        f"| {task} | {size} | {method} | {predicted / 1e6:,.0f} | {real['peak'] / 1e6:,.0f} | "
        f"{predicted / real['peak'] - 1:+.1%} | {step:.2f} | {real['step']:.2f} | "
        f"{step / real['step']:.2f} | {planned['planned_in']:.0f} |"
    )


def main() -> None:
    """Print the table, a row at a time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--work", type=Path)
    flags = parser.parse_args()
    head = ("task", "model", "method", "predicted MB", "measured MB", "error")
    head += ("predicted s/step", "measured s/step", "ratio", "planned in s")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = flags.work or Path(scratch)
        for task in flags.tasks:
            for size, method in CASES[task]:
                if size in flags.sizes and method in flags.methods:
                    row = compare(task, size, method, flags.data.resolve(), work.resolve())
                    print(row, flush=True)


if __name__ == "__main__":
    main()
