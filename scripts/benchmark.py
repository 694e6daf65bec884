"""Measure speed and memory against other ways to do the same work, in alternation.

    python scripts/benchmark.py --data FOLDER --peer nanogpt=CHECKOUT --json results.json
    python scripts/benchmark.py --data FOLDER --curves PICTURE.png

Each variant of a case is a process of its own; they take turns, once to warm up and then for
`--rounds`. FOLDER holds shakespeare/input.txt (any text), sst2/train.csv and validation.csv
(sentence, label), xquad/xquad.en.json (SQuAD's JSON) and gpt2_tokenizer/. The suite `gpu` takes one
GPU; where there is none its rows are "not measured". With `--device cpu --little` its flow is tried
on a CPU, with small shapes that measure nothing.
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
from typing import Any

from benchmarks.cases import CURVES, SUITES, Case, Curve, Variant

HERE = Path(__file__).resolve().parent
NEEDED = (
    "shakespeare/input.txt",
    "sst2/train.csv",
    "sst2/validation.csv",
    "xquad/xquad.en.json",
    "gpt2_tokenizer",
)
PEERS = {"nanogpt": "train.py"}
"""Whom a checkout can be given of, and the script that it must hold."""
SMALLER_IS_BETTER = ("seconds", "MB", "share", "positions")
ROUNDS = {"cpu": (5, 1), "gpu": (1, 0)}
"""Repetitions of a suite, and those before them that are not counted."""


class VariantError(Exception):
    """A variant that failed, or that had no time left."""


@dataclass(frozen=True)
class Bench:
    """Where and how the variants run."""

    data: Path
    work: Path
    peers: dict[str, Path]
    rounds: int
    warmups: int
    clock: str
    device: str
    little: bool = False
    deadline: float = float("inf")
    """Time, as of time.monotonic, after which nothing runs."""

    def run(self, variant: Variant, quantity: str) -> dict[str, Any]:
        """Run one variant in a process of its own; return its value, peak memory and more.

        Raise VariantError where it fails.
        """
        command = [sys.executable, *self.launcher(variant)]
        command.append(str(HERE / "benchmarks" / f"{variant.script}.py"))
        command += [variant.case, str(self.data.resolve()), str(self.work), *variant.flags]
        if variant.script in self.peers:
            command.append(f"checkout={self.peers[variant.script].resolve()}")
        settings = {
            "BENCHMARK_CLOCK": self.clock,
            "BENCHMARK_START": str(time.time()),
            "BENCHMARK_DEVICE": self.device,
            "ACCELERATE_MIXED_PRECISION": variant.precision,
            "ACCELERATE_USE_CPU": str(self.device == "cpu").lower(),
            **({"BENCHMARK_LITTLE": "1"} if self.little else {}),
            **variant.environment,
        }
        found = self.output_of(command, os.environ | settings)
        value = {"MB": "memory", "seconds": "first_step"}.get(quantity, "rate")
        return found | {"value": found[value]}

    def launcher(self, variant: Variant) -> list[str]:
        """Return the arguments that launch a variant.

        Those of a GPU have none: what the launcher hands to one process is set, and it takes
        seconds.
        """
        if self.little or self.device == "cuda":
            return []
        config = HERE.parent / "accelerate_configs" / (variant.launched or "cpu.yaml")
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        return [*launch, "--mixed_precision", variant.precision]

    def output_of(self, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
        """Run a command and return the JSON of its last line. Raise VariantError if it fails."""
        left = None if self.deadline == float("inf") else self.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise VariantError("no time left")
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, stdout=out, stderr=errors, env=environment, cwd=self.work
            )
            try:
                process.wait(left)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise VariantError("no time left") from None
            out.seek(0)
            errors.seek(0)
            if process.returncode:
                text = errors.read().strip()
                print(f"{' '.join(command)} failed:\n{text[-3000:]}", file=sys.stderr, flush=True)
                raise VariantError(f"failed: {(text.splitlines() or ['no message'])[-1][:200]}")
            return dict(json.loads(out.read().strip().splitlines()[-1]))


def alternate(
    variants: dict[str, Variant], quantity: str, bench: Bench
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """Let variants take turns; return the rounds of each that count, and why others failed."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    failed: dict[str, str] = {}
    for number in range(bench.warmups + bench.rounds):
        for name, variant in variants.items():
            if name in failed:
                continue
            try:
                one = bench.run(variant, quantity)
            except VariantError as error:
                failed[name] = str(error)
                continue
            if number >= bench.warmups:
                found[name].append(one)
    return {name: rounds for name, rounds in found.items() if name not in failed}, failed


def compare(case: Case, bench: Bench, matrix_rate: float | None) -> Iterator[dict]:
    """Alternate the variants of a case; yield a row for each peer."""
    peers = {
        name: (variant, bar)
        for name, (variant, bar) in case.peers.items()
        if variant is None or variant.script != "nanogpt" or "nanogpt" in bench.peers
    }
    variants = {"ours": case.ours} | {
        name: variant for name, (variant, _) in peers.items() if variant
    }
    found, failed = alternate(variants, case.quantity, bench)
    summaries = {name: summary(case, rounds, matrix_rate) for name, rounds in found.items()}
    ours = [one["value"] for one in found.get("ours", ())]
    for name, (variant, bar) in peers.items():
        if why := failed.get("ours") or failed.get(name):
            yield case.not_measured(name, why) | {"ours": summaries.get("ours")}
            continue
        theirs = [one["value"] for one in found[name]] if variant else [1.0] * len(ours)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        ratio = statistics.median(ratios)
        smaller = case.quantity in SMALLER_IS_BETTER
        yield {
            "case": case.name,
            "peer": name,
            "quantity": case.quantity,
            "ratio": ratio,
            "spread": [min(ratios), max(ratios)],
            "bar": bar,
            "met": None
            if bar is None or bench.little
            else (ratio <= bar if smaller else ratio >= bar),
            "ours": summaries["ours"],
            "theirs": summaries.get(name),
        }


def summary(
    case: Case, rounds: list[dict[str, float]], matrix_rate: float | None
) -> dict[str, float | list[float]]:
    """Return median and spread of a variant's value, its peak memory, tokens/s and utilisation."""
    values = [one["value"] for one in rounds]
    found: dict[str, float | list[float]] = {
        "median": statistics.median(values),
        "spread": [min(values), max(values)],
        "memory_mb": statistics.median(one["memory"] for one in rounds),
    }
    if case.tokens_per_row:
        tokens_per_second = statistics.median(values) * case.tokens_per_row
        found["tokens_per_second"] = tokens_per_second
        if matrix_rate:
            found["utilisation"] = tokens_per_second * case.flops_per_token / matrix_rate
    return found


def row_of(row: dict) -> str:
    """Return a row as a line of a Markdown table."""
    if row["ratio"] is None:
        why = f"not measured: {row['not_measured']}".replace("|", "/")
        return f"| {row['case']} | {row['peer']} | | | {why} | {bar_of(row)} | | | |"
    ours, theirs = row["ours"], row["theirs"]
    unit = "" if row["quantity"] == "share" else f" {row['quantity']}"
    low, high = row["spread"]
    cells = [
        row["case"],
        row["peer"],
        f"{ours['median']:.4g}{unit}",
        f"{theirs['median']:.4g}" if theirs else "",
        f"{row['ratio']:.3g} ({low:.3g} to {high:.3g})",
        bar_of(row),
        {True: "yes", False: "no", None: ""}[row["met"]],
        " / ".join(f"{variant['memory_mb']:,.0f}" for variant in (ours, theirs) if variant),
        " / ".join(
            f"{variant['utilisation']:.0%}"
            for variant in (ours, theirs)
            if variant and "utilisation" in variant
        ),
    ]
    return "| " + " | ".join(cells) + " |"


def bar_of(row: dict) -> str:
    """Return the bar of a row as it reads."""
    sign = "≤" if row["quantity"] in SMALLER_IS_BETTER else "≥"
    return "" if row["bar"] is None else f"{sign} {row['bar']}"


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    head = "case | peer | ours | peer's | ratio (spread) | bar | met | MB | utilisation"
    return "\n".join([f"| {head} |", "|---" * 9 + "|", *map(row_of, rows)])


def prepare(need: str, bench: Bench) -> None:
    """Make what a case needs: a result to predict with, or a checkpoint to tune."""
    if need == "ours-predict":
        bench.run(Variant("ours", "make-predict"), "rows/s")
        return
    if need == "ours-generate":
        prepare("small", bench)
        bench.run(Variant("ours", "make-generate"), "rows/s")
        return
    if (bench.work / need).is_dir():
        return
    sizes = {"large": (36, 20, 1280), "xl": (48, 25, 1600), "small": (12, 12, 768)}[need]
    flags = tuple(f"{n}={v}" for n, v in zip(("layers", "heads", "width"), sizes, strict=True))
    bench.run(Variant("checkpoint", need, flags), "rows/s")


def grow(curve: Curve, bench: Bench) -> list[dict]:
    """Measure a curve, print it as a table and return its points."""
    points = []
    print(f"\n| {curve.name} | variant | {curve.quantity} (spread) | MB |\n|---|---|---|---|")
    for x in curve.values:
        variants = {name: curve.at(variant, x) for name, variant in curve.variants.items()}
        found, failed = alternate(variants, curve.quantity, bench)
        if failed:
            raise SystemExit(f"{curve.name}, {x}: {failed}")
        for name, rounds in found.items():
            values = [one["value"] * curve.scale(x) for one in rounds]
            low, middle, high = min(values), statistics.median(values), max(values)
            memory = statistics.median(one["memory"] for one in rounds)
            digits = ",.0f" if low >= 100 else ".3g"
            numbers = f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"
            print(f"| {x:,} | {name} | {numbers} | {memory:,.0f} |", flush=True)
            point = {"curve": curve.name, "quantity": curve.quantity, "x": x, "variant": name}
            points.append(point | {"median": middle, "spread": [low, high], "memory_mb": memory})
    return points


def draw(points: list[dict], file: Path) -> None:
    """Draw curves as a PNG, four next to each other: the quantity of each, and its memory below."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point["curve"] for point in points))
    columns, bands = min(len(names), 4), -(-len(names) // 4)
    figure = Figure(figsize=(3.2 * columns, 5.4 * bands), layout="constrained")
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for number, name in enumerate(names):
        of_curve = [point for point in points if point["curve"] == name]
        values = sorted({point["x"] for point in of_curve})
        labels = [of_curve[0]["quantity"], "peak MB"]
        band, column = divmod(number, columns)
        pair = grid[2 * band : 2 * band + 2, column]
        for axes, key, label in zip(pair, ("median", "memory_mb"), labels, strict=True):
            axes.set_visible(True)
            for variant in dict.fromkeys(point["variant"] for point in of_curve):
                line = [(values.index(p["x"]), p[key]) for p in of_curve if p["variant"] == variant]
                axes.plot(*zip(*line, strict=True), marker="o", label=variant)
            axes.set_xticks(range(len(values)), [f"{x:,}" for x in values], fontsize=8)
            axes.set(xlabel=name, ylabel=label)
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            axes.grid(alpha=0.3)
        pair[0].legend(fontsize=8)
    figure.savefig(file, dpi=100)


def folder_of_data(given: str) -> Path:
    """Return the folder, if all that the cases read is there."""
    missing = [name for name in NEEDED if not (Path(given) / name).exists()]
    if missing:
        raise argparse.ArgumentTypeError(f"{given} has no {', '.join(missing)}")
    return Path(given)


def checkout(given: str) -> tuple[str, Path]:
    """Return name and folder of a peer, from `name=PATH`."""
    name, _, path = given.partition("=")
    if name not in PEERS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(PEERS)}")
    if not (Path(path) / PEERS[name]).is_file():
        raise argparse.ArgumentTypeError(f"{path!r} has no {PEERS[name]}")
    return name, Path(path)


def parse() -> argparse.Namespace:
    """Return the options, or end with a message about them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=folder_of_data, required=True, help="folder of the data")
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="by default that of the suite's name"
    )
    parser.add_argument("--little", action="store_true", help="small shapes, to try the suite gpu")
    parser.add_argument(
        "--peer", type=checkout, action="append", default=[], help="nanogpt=PATH of a checkout"
    )
    parser.add_argument("--case", action="append", help="only these cases, or curves")
    parser.add_argument("--rounds", type=int, help="5; of the suite gpu 1")
    parser.add_argument("--warmups", type=int, help="rounds that are not counted: 1; suite gpu 0")
    parser.add_argument("--seconds", type=float, help="after which no further variant runs")
    parser.add_argument("--curves", type=Path, help="measure growth; file for the picture")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts seconds of the processor: for a machine that does other work meanwhile",
    )
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    options.device = options.device or {"cpu": "cpu", "gpu": "cuda"}[options.suite]
    rounds, warmups = ROUNDS[options.suite]
    options.rounds = rounds if options.rounds is None else options.rounds
    options.warmups = warmups if options.warmups is None else options.warmups
    known = [each.name for each in (CURVES if options.curves else SUITES[options.suite])]
    if unknown := set(options.case or ()) - set(known):
        parser.error(f"--case: {', '.join(sorted(unknown))} is none of: {'; '.join(known)}")
    if options.rounds < 1 or options.warmups < 0:
        parser.error("--rounds: at least 1; --warmups: at least 0")
    if options.suite == "cpu" and (options.little or options.device == "cuda"):
        parser.error("--little and --device cuda are of --suite gpu")
    if options.suite == "gpu" and options.device == "cpu" and not options.little:
        parser.error("--suite gpu --device cpu takes hours: add --little, which measures nothing")
    return options


def run_case(case: Case, bench: Bench, measured: dict[str, Any]) -> list[dict]:
    """Return the rows of a case, also where it cannot be measured; each names the machine."""
    if bench.device == "cuda" and not measured["gpus"]:
        rows = [case.not_measured(name, "no GPU") for name in case.peers]
    else:
        try:
            if case.needs:
                prepare(case.needs, bench)
            rows = list(compare(case, bench, None if bench.little else measured["rate"]))
        except VariantError as error:
            rows = [case.not_measured(name, str(error)) for name in case.peers]
    return [row | {"machine": measured["machine"], "little": bench.little} for row in rows]


def main() -> None:
    """Run the cases or the curves, print their table and write their rows.

    The exit code is 1 where a variant failed.
    """
    options = parse()
    rows: list[dict] = []

    def add(more: list[dict]) -> None:
        rows.extend(more)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as work:
        bench = Bench(
            options.data,
            Path(work),
            dict(options.peer),
            options.rounds,
            options.warmups,
            options.clock,
            options.device,
            options.little,
            time.monotonic() + options.seconds if options.seconds else float("inf"),
        )
        if options.curves:
            for curve in CURVES:
                if not options.case or curve.name in options.case:
                    if curve.needs:
                        prepare(curve.needs, bench)
                    add(grow(curve, bench))
                    draw(rows, options.curves)
            return
        measured = bench.run(Variant("machine", "machine"), "rows/s")
        print(", ".join(f"{name}: {value}" for name, value in measured["machine"].items()))
        for case in SUITES[options.suite]:
            if not options.case or case.name in options.case:
                before = len(rows)
                add(run_case(case, bench, measured))
                print(table(rows[before:]), flush=True)
    print(f"\nmatrix rate {measured['rate'] / 1e9:,.0f} GFLOP/s\n\n{table(rows)}")
    if any(str(row.get("not_measured")).startswith("failed") for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
