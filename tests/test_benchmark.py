"""The benchmark runs on anybody's data, and its ratios and bars say what they should."""

import csv
import json
import subprocess
import sys

import pytest

from helpers.factories import ROOT, load_module
from pipelines.data.load import read_file


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield load_module(ROOT / "scripts" / "benchmark.py")
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, helpdesk, tokenizer):
    """A folder as docs/benchmarks.md asks for, of generated texts."""
    folder = tmp_path_factory.mktemp("benchmark")
    for name in ("shakespeare", "sst2", "xquad"):
        (folder / name).mkdir()
    rows = read_file(helpdesk / "documents" / "train.jsonl").rows
    (folder / "shakespeare" / "input.txt").write_text("\n".join(row["text"] for row in rows))
    for split in ("train", "validation"):
        with (folder / "sst2" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence", "label"])
            writer.writerows([f"{split} {number} was fine", number % 2] for number in range(40))
    question = {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    paragraphs = [{"context": "Ada sat there.", "qas": [question]}]
    squad = {"data": [{"title": "", "paragraphs": paragraphs}]}
    (folder / "xquad" / "xquad.en.json").write_text(json.dumps(squad))
    tokenizer.save_pretrained(folder / "gpt2_tokenizer")
    return folder


def run(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_both_variants_of_a_case_run_and_are_compared(data, tmp_path):
    found = tmp_path / "results.json"
    once = ("--rounds", 1, "--warmups", 0)
    done = run("--data", data, "--case", "startup", *once, "--json", found)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(found.read_text())
    assert (row["case"], row["peer"], row["bar"]) == ("startup", "plain Trainer", 1.0)
    assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["theirs"]["median"])
    assert row["met"] == (row["ratio"] <= 1.0)
    assert min(row["ours"]["memory_mb"], row["theirs"]["memory_mb"]) > 300
    assert "| startup | plain Trainer |" in done.stdout


def test_rows_of_a_gpu_are_not_measured_without_one(data, tmp_path):
    found = tmp_path / "results.json"
    done = run("--data", data, "--suite", "gpu", "--json", found)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())
    assert {row["ratio"] for row in rows} == {None}
    assert {(row["case"], row["bar"]) for row in rows if row["bar"]} == {
        ("gpt2-124m, block 1024", 1.0),
        ("sst2, LoRA", 3.0),
        ("generate, one GPU", 3.0),
        ("xl-lora-8bit", 0.35),
    }
    assert {row["not_measured"] for row in rows} == {"no GPU"}
    assert all(row["machine"]["torch"] for row in rows)
    assert done.stdout.count("not measured") >= len(rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "nowhere has no shakespeare/input.txt"),
        (["--data", "DATA", "--peer", "nanoGPT=x"], "'nanoGPT' is none of: nanogpt"),
        (["--data", "DATA", "--peer", "nanogpt=nowhere"], "'nowhere' has no train.py"),
        (["--data", "DATA", "--case", "sst"], "sst is none of: shakespeare; "),
        (["--data", "DATA", "--rounds", "0"], "--rounds: at least 1"),
        (["--data", "DATA", "--suite", "gpu", "--device", "cpu"], "takes hours: add --little"),
        (["--data", "DATA", "--little"], "--little and --device cuda are of --suite gpu"),
    ],
)
def test_wrong_arguments_are_refused(data, arguments, said):
    done = run(*(data if argument == "DATA" else argument for argument in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("quantity", "bar", "met"),
    [("rows/s", 1.9, True), ("rows/s", 2.1, False), ("MB", 1.9, False), ("MB", 2.1, True)],
)
def test_a_ratio_is_the_median_of_the_rounds_ratios(benchmark, quantity, bar, met):
    values = {"ours": iter([9.0, 4.0, 6.0, 40.0]), "peer": iter([1.0, 2.0, 6.0, 10.0])}

    class Replayed(benchmark.Bench):
        def run(self, variant, quantity):
            return {"value": next(values[variant.script]), "memory": 100.0}

    variants = {name: benchmark.Variant(name, "") for name in values}
    case = benchmark.Case("case", variants["ours"], {"peer": (variants["peer"], bar)}, quantity)
    bench = Replayed(ROOT, ROOT, {}, 3, 1, "wall", "cpu")  # the first round is not counted
    (row,) = benchmark.compare(case, bench, None)
    assert (row["ratio"], row["spread"], row["met"]) == (2.0, [1.0, 4.0], met)
    assert (row["ours"]["median"], row["theirs"]["median"]) == (6.0, 6.0)


def test_a_variant_that_fails_leaves_a_row_and_the_other_peers(benchmark):
    class Failing(benchmark.Bench):
        def run(self, variant, quantity):
            if variant.script == "bad":
                raise benchmark.VariantError("failed: out of memory")
            return {"value": 3.0, "memory": 100.0}

    variants = {name: benchmark.Variant(name, "") for name in ("ours", "bad", "good")}
    peers = {name: (variants[name], 1.0) for name in ("bad", "good")}
    case = benchmark.Case("case", variants["ours"], peers)
    bad, good = benchmark.compare(case, Failing(ROOT, ROOT, {}, 2, 0, "wall", "cpu"), None)
    assert (bad["ratio"], bad["not_measured"]) == (None, "failed: out of memory")
    assert bad["ours"]["median"] == 3.0
    assert (good["ratio"], good["met"]) == (1.0, True)
    assert "not measured: failed: out of memory" in benchmark.row_of(bad)
    failed = benchmark.Case("case", variants["bad"], {"good": (variants["good"], 1.0)})
    (row,) = benchmark.compare(failed, Failing(ROOT, ROOT, {}, 1, 0, "wall", "cpu"), None)
    assert row["not_measured"] == "failed: out of memory"


def test_nothing_runs_after_the_deadline(benchmark, data, tmp_path):
    bench = benchmark.Bench(data, tmp_path, {}, 1, 0, "wall", "cpu", deadline=0.0)
    case = benchmark.SUITES["gpu"][1]
    rows = benchmark.run_case(case, bench, {"rate": 1.0, "gpus": 0, "machine": {}})
    assert [row["not_measured"] for row in rows] == ["no time left"]


def test_a_command_that_fails_is_named_by_the_last_line_of_its_error(benchmark, tmp_path, capfd):
    bench = benchmark.Bench(ROOT, tmp_path, {}, 1, 0, "wall", "cpu")
    code = "import sys; sys.exit('first\\nno such case')"
    with pytest.raises(benchmark.VariantError, match="^failed: no such case$"):
        bench.output_of([sys.executable, "-c", code], {})
    assert "first" in capfd.readouterr().err


def test_a_little_case_of_the_suite_gpu_runs_on_a_cpu(data, tmp_path):
    found = tmp_path / "results.json"
    little = ("--suite", "gpu", "--device", "cpu", "--little")
    done = run("--data", data, *little, "--case", "xl-lora-8bit", "--json", found)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(found.read_text())
    assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["theirs"]["median"])
    assert (row["met"], row["little"]) == (None, True)  # small shapes say nothing about the bar
