"""What is run on a GPU machine: the kit has what it needs, and the command bounds its stages."""

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from helpers.factories import ROOT, load_module

GPU = ROOT / "scripts" / "gpu"


@pytest.fixture(scope="module")
def pack():
    return load_module(GPU / "pack.py")


@pytest.fixture(scope="module")
def machine():
    sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
    yield load_module(ROOT / "scripts" / "benchmarks" / "machine.py")
    sys.path.remove(str(ROOT / "scripts" / "benchmarks"))


def test_the_kit_has_the_tested_versions_and_nothing_that_an_image_has(pack):
    pins = pack.pins(pack.closure("3.12", []))
    tested = set((ROOT / "constraints.txt").read_text().splitlines())
    names = {pack.canonical(re.split("[=<>]", pin)[0]) for pin in pins}
    assert {pin for pin in pins if not pin.startswith("liger-kernel")} <= tested
    assert {"transformers", "peft", "trl", "bitsandbytes", "liger-kernel", "pytest"} <= names
    assert names.isdisjoint(pack.IMAGE)
    assert "pyarrow" in pack.closure("3.12", ["pyarrow"])


def test_a_package_without_a_pin_is_named(pack):
    with pytest.raises(SystemExit, match="no pin of: nosuch"):
        pack.pins({"torch", "nosuch"})


@pytest.mark.parametrize(
    ("wheel", "path", "read"),
    [
        ("bitsandbytes-1.whl", "bitsandbytes/libbitsandbytes_cuda130.so", True),
        ("bitsandbytes-1.whl", "bitsandbytes/libbitsandbytes_cuda128.so", False),
        ("bitsandbytes-1.whl", "bitsandbytes/libbitsandbytes_cpu.so", True),
        ("transformers-1.whl", "transformers/testing_utils.py", True),
        ("nltk-1.whl", "nltk/app/nemo_app.py", False),
        ("nltk-1.whl", "nltk/stem/porter.py", True),
        ("datasets-1.whl", "datasets/__init__.pyi", False),
    ],
)
def test_files_that_no_run_reads_are_left_out(pack, wheel, path, read):
    assert pack.is_read(wheel, PurePosixPath(path), "130") == read


def test_files_of_a_wheel_go_where_an_installation_has_them(pack):
    assert pack.place_of("a/b.py") == "a/b.py"
    assert pack.place_of("a-1.data/purelib/a/b.py") == "a/b.py"
    assert pack.place_of("a-1.data/scripts/a") is None


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 5090", None),
    ],
)
def test_the_rate_of_a_card_is_that_of_its_data_sheet_or_unknown(machine, name, teraflops):
    assert machine.maker_rate(name) == (None if teraflops is None else teraflops * 1e12)


def run(*stages, folder, **variables):
    """Run scripts/gpu/run.sh; return the process and the names of what it wrote."""
    given = os.environ | {"OUT": str(folder), "DEVICE": "cpu", "KIT": "none here", **variables}
    given["PATH"] = f"{Path(sys.executable).parent}:{given['PATH']}"
    done = subprocess.run(
        ["bash", str(GPU / "run.sh"), *stages], capture_output=True, text=True, env=given
    )
    return done, sorted(file.name for file in folder.iterdir())


def test_an_unknown_stage_is_refused_before_anything_runs(tmp_path):
    done, files = run("versions", "benchmark", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "no stage benchmark\n"
    assert files == []


def test_a_stage_without_time_is_told_and_fails(tmp_path):
    done, _ = run("bench", folder=tmp_path, SECONDS_IN_ALL="20")
    assert done.returncode == 1
    assert "## bench: no time left" in done.stdout


def test_a_stage_that_fails_leaves_the_next_one_and_the_exit_code(tmp_path):
    done, files = run(
        *("versions", "bench"), folder=tmp_path, VERSIONS="1", BENCH_DATA="", SECONDS_IN_ALL="99"
    )
    assert done.returncode == 1
    assert "## versions: exit code 124" in done.stdout
    assert "no BENCH_DATA, and none in the kit" in done.stdout
    assert files == ["bench.txt", "versions.txt"]
