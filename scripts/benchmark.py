"""Measure speed and memory against other ways to do the same work, in alternation.

    python scripts/benchmark.py --data FOLDER --peer nanogpt=CHECKOUT --json results.json

Each side of a case is a process of its own; the sides take turns, once to warm up and then for
`--rounds`. FOLDER holds shakespeare/input.txt (any text), sst2/train.csv and validation.csv
(sentence, label), xquad/xquad.en.json (SQuAD's JSON) and gpt2_tokenizer/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file"]


@dataclass(frozen=True)
class Case:
    """One comparison: ours over a peer's, in `quantity`, against a bar."""

    name: str
    ours: tuple[str, ...]
    peers: dict[str, tuple[tuple[str, ...], float]]
    """Name of each peer to its arguments and the bar of the ratio."""
    quantity: str = "rows/s"
    launched: bool = False
    """Started by `accelerate launch`, and timed from there to the first step."""
    needs: str | None = None
    """What must have been prepared in the working folder."""


def cpu_cases() -> Iterator[Case]:
    """Yield the cases of the suite `cpu`."""
    for name, eager, compiled, plain in (
        ("shakespeare", 1.0, 1.0, 1.3),
        ("gpt2-124m", 1.4, 1.25, None),
    ):
        peers = {"nanogpt": (("nanogpt.py", name), eager)}
        peers |= {"nanogpt compiled": (("nanogpt.py", name, "--compile"), compiled)}
        if plain:
            peers |= {"plain Trainer": (("plain_trainer.py", name), plain)}
        yield Case(name, ("ours.py", name), peers)
        yield Case(f"{name} compiled", ("ours.py", name, "--compile"), peers)
    peers = {
        "padded to 128": (("plain_trainer.py", "sst2-padded"), 6.0),
        "random batches": (("plain_trainer.py", "sst2"), 2.0),
    }
    yield Case("sst2", ("ours.py", "sst2"), peers)
    peers = {
        "padded to 384": (("plain_trainer.py", "xquad-padded"), 1.3),
        "random batches": (("plain_trainer.py", "xquad"), 1.3),
    }
    yield Case("xquad", ("ours.py", "xquad"), peers)
    peers = {"plain Trainer": (("plain_trainer.py", "startup"), 1.0)}
    yield Case("startup", ("ours.py", "startup"), peers, "seconds", launched=True)
    peers = {"full fine-tuning": (("ours.py", "large-full"), 0.30)}
    yield Case("large-lora-8bit", ("ours.py", "large-lora-8bit"), peers, "MB", needs="large")
    peers = {"transformers.pipeline": (("plain_trainer.py", "predict"), 4.0)}
    yield Case("predict", ("ours.py", "predict"), peers, needs="ours-predict")
    yield Case("overhead", ("ours.py", "overhead"), {"": ((), 0.03)}, "share")


def measure(arguments: tuple[str, ...], case: Case, options: argparse.Namespace) -> dict:
    """Run one side in a process of its own; return its number and its peak memory in MB."""
    script, name, *flags = arguments
    launch = [*LAUNCH, str(HERE.parent / "accelerate_configs/cpu.yaml")] if case.launched else []
    command = [sys.executable, *launch, str(HERE / "benchmarks" / script), name]
    command += [str(options.data.resolve()), str(options.work)]
    if script == "nanogpt.py":
        command.append(str(options.peers["nanogpt"].resolve()))
    clock = {"BENCHMARK_CLOCK": options.clock, "BENCHMARK_START": str(time.time())}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, *flags],
            stdout=out,
            stderr=errors,
            env=os.environ | clock | {"ACCELERATE_USE_CPU": "true"},
            cwd=options.work,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-3000:]}")
        found = json.loads(out.read().strip().splitlines()[-1])
    memory = usage.ru_maxrss / 1000
    if case.launched:
        return {"value": found["first_step"], "memory": memory}
    return {"value": memory if case.quantity == "MB" else found["rate"], "memory": memory}


def compare(case: Case, options: argparse.Namespace) -> Iterator[dict]:
    """Alternate the sides of a case; yield a row for each peer."""
    peers = {
        name: given
        for name, given in case.peers.items()
        if not given[0] or given[0][0] != "nanogpt.py" or "nanogpt" in options.peers
    }
    sides = {"ours": case.ours} | {name: given[0] for name, given in peers.items() if given[0]}
    found: dict[str, list[dict]] = {name: [] for name in sides}
    for number in range(options.warmups + options.rounds):
        for name, arguments in sides.items():
            one = measure(arguments, case, options)
            if number >= options.warmups:
                found[name].append(one)
    smaller = case.quantity in ("seconds", "MB", "share")
    for name, (_, bar) in peers.items():
        ours = [one["value"] for one in found["ours"]]
        theirs = [one["value"] for one in found[name]] if name else [1.0] * len(ours)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        ratio = statistics.median(ratios)
        yield {
            "case": case.name,
            "peer": name,
            "quantity": case.quantity,
            "ours": statistics.median(ours),
            "theirs": statistics.median(theirs),
            "ratio": ratio,
            "spread": [min(ratios), max(ratios)],
            "bar": bar,
            "met": ratio <= bar if smaller else ratio >= bar,
            "memory_mb": {
                side: statistics.median(one["memory"] for one in rounds)
                for side, rounds in found.items()
            },
        }


def prepare(need: str, options: argparse.Namespace) -> None:
    """Make what a case needs: a result to predict with, or a checkpoint of GPT-2 large's shape."""
    if need == "ours-predict":
        lines = (options.data / "sst2/train.csv").read_text().splitlines()[:2001]
        (options.work / "rows.csv").write_text("\n".join(lines) + "\n")
    code = {
        "ours-predict": "import ours; from pipelines.run import run; from pathlib import Path; "
        f"run(ours.recipe_for('predict', Path({str(options.data.resolve())!r}), "
        f"Path({str(options.work)!r})))",
        "large": "import transformers as t; c = t.GPT2Config(n_layer=36, n_head=20, n_embd=1280); "
        f"t.GPT2LMHeadModel(c).save_pretrained({str(options.work / 'large')!r}); "
        f"t.AutoTokenizer.from_pretrained({str((options.data / 'gpt2_tokenizer').resolve())!r})"
        f".save_pretrained({str(options.work / 'large')!r})",
    }[need]
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        cwd=HERE / "benchmarks",
    )


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| case | peer | ours | peer's | ratio (spread) | bar | met |", "|---" * 7 + "|"]
    for row in rows:
        low, high = row["spread"]
        sign = "≤" if row["quantity"] in ("seconds", "MB", "share") else "≥"
        values = f"{row['ours']:.4g} {row['quantity']} | {row['theirs']:.4g}"
        ratio = f"{row['ratio']:.3g} ({low:.3g} to {high:.3g})"
        met = "yes" if row["met"] else "no"
        lines.append(
            f"| {row['case']} | {row['peer']} | {values} | {ratio} | {sign} {row['bar']} | {met} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print their table and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--peer", action="append", default=[], help="name=PATH of a checkout")
    parser.add_argument("--case", action="append", help="only these cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmups", type=int, default=1, help="rounds that are not counted")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts seconds of the processor: for a machine that does other work meanwhile",
    )
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    options.peers = {n: Path(p) for n, p in (peer.split("=", 1) for peer in options.peer)}
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as work:
        options.work = Path(work)
        for case in cpu_cases():
            if options.case and case.name not in options.case:
                continue
            if case.needs:
                prepare(case.needs, options)
            rows += compare(case, options)
            print(table(rows[-len(case.peers) :]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=2) + "\n")
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
