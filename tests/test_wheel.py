"""The wheel holds everything: installed alone, it serves a Hub and trains a shipped recipe."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from helpers.factories import ROOT

SOURCES = ("pipelines", "recipes", "accelerate_configs")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt")
SMALL = "--model.n-layer 1 --model.n-embd 32 --model.n-head 2 --model.n-positions 32 "
SMALL += "--task.block-size 32 --model.tokenizer.vocab-size 300 --train.max-steps 2"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built from a copy of it."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "-qw", "dist"], cwd=source, check=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """The folder of the commands of a new environment that has the wheel installed.

    It takes the dependencies from the environment of the tests, by a path; what is installed there
    in editable mode is not seen by it.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    paths = [path for path in sys.path if path.endswith("site-packages")]
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    install = ["-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel]
    subprocess.run([sys.executable, *install], check=True)
    (site / "dependencies.pth").write_text("\n".join(paths) + "\n")
    where = [python, "-c", "import pipelines; print(pipelines.__file__)"]
    found = subprocess.run(where, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert found.startswith(str(folder)), found
    return python.parent


def test_every_file_is_in_the_wheel_and_nothing_beside_the_package(wheel):
    names = set(ZipFile(wheel).namelist())
    folders = {"pipelines": "pipelines"}
    folders |= {name: f"pipelines/shipped/{name}" for name in SOURCES[1:]}
    expected = {
        f"{target}/{file.relative_to(ROOT / source)}"
        for source, target in folders.items()
        for file in (ROOT / source).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    expected.add("pipelines/shipped/constraints.txt")
    assert expected <= names
    assert {name.split("/")[0] for name in names - expected} == {"gpt2_recipes-0.1.0.dist-info"}


def test_a_shipped_recipe_trains_by_its_name_in_an_empty_folder(commands, tmp_path):
    def gpt2_recipes(*words):
        return subprocess.run(
            [commands / "gpt2-recipes", *words], cwd=tmp_path, capture_output=True, text=True
        )

    done = gpt2_recipes("train", "helpdesk_pretrain", "--help")
    assert done.returncode == 0, done.stderr
    assert "--train.learning-rate" in done.stdout
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"text": "Ticket {i}: it is late."}}\n' for i in range(40)))
    words = ["helpdesk-pretrain", "--config-file", "cpu", "--task.dataset.path", "data.jsonl"]
    done = gpt2_recipes("train", *words, *SMALL.split())
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "runs/helpdesk-pretrain/recipe.json").read_text())
    assert recipe["train"]["max_steps"] == 2
    assert (tmp_path / "runs/helpdesk-pretrain/model.safetensors").is_file()
    assert ROOT.as_posix() not in (tmp_path / "runs/helpdesk-pretrain/run.log").read_text()


def test_the_wheel_knows_the_versions_that_it_was_tested_with(commands, tmp_path):
    done = subprocess.run(
        [commands / "gpt2-recipes", "doctor", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    mark, text = found["libraries"]["mark"], found["libraries"]["text"]
    other_torch = text.startswith("not tested: torch ") and ", " not in text  # by scripts/oldest.sh
    assert mark == "ok" or other_torch, found["libraries"]


def test_the_wheel_serves_a_hub(commands, tmp_path):
    with subprocess.Popen(
        [commands / "gpt2-recipes", "hub", "--folder", "hub", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as served:
        lines = [served.stdout.readline() for _ in range(2)]
        served.terminate()
    assert "HF_ENDPOINT=http://127.0.0.1:" in lines[1]
    assert (tmp_path / "hub" / "token").is_file()
