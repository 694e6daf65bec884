"""Every command and every Python block of the documents is executed, in the order of its page.

They run against a Hub on this machine, in a folder with a little data and small models. A page
begins with the results of the quickstart; `me` and USER are the user of the Hub.
"""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from helpers.commands import CommandServer
from helpers.documents import PAGES, blocks_of, commands_of
from helpers.factories import ROOT, load_module
from helpers.hub_process import SECRET, environment

NOT_EXECUTED = {
    r"python3 -m venv .*": "installs; every machine that runs the tests has done so",
    r"(\.venv/bin/)?pip install .*": "installs; every machine that runs the tests has done so",
    r"\.venv/bin/pre-commit install": "changes this checkout",
    r"(sbatch|kubectl|hf jobs|sky) .*": "needs a cluster or an account; see test_launch_files.py",
    r"HF_HOME=\$PWD/huggingface \.venv/bin/hf download .*": "downloads GPT-2 from the Hub",
    r"pip wheel .*": "builds a wheel; test_wheel.py does",
    r"python scripts/benchmarks/scaling\.py.*": "takes minutes; see tests/test_scaling.py",
    r"python scripts/benchmarks/weak_scaling\.py": "takes ten minutes; see tests/test_scaling.py",
    r"docker .*": "needs a container engine; test_readme.py compares the Dockerfile",
    r"bash scripts/test\.sh .*": "runs these tests",
    r"bash scripts/gpu/(kit|run)\.sh.*": "takes minutes; see tests/test_gpu_kit.py",
    r"bash scripts/quickstart\.sh": "takes minutes; its commands are on the other pages",
    r"accelerate launch .*--num_machines 2 .*": "needs two machines; see tests/test_train.py",
    r"gpt2-recipes hub": "never ends; test_wheel.py starts one",
    r"gpt2-recipes demo \S+": "never ends; tests/demo/test_demo_page.py starts one",
    r"gpt2-recipes serve .*": "never ends; tests/serving starts one",
    r"curl .*": "needs a server; tests/serving has one",
    r"transformers serve .*": "never ends, and needs an extra of transformers",
    r"gpt2-recipes merge REPO .*": "a placeholder; docs/inference.md merges",
    r"python scripts/benchmarks/(serving|assisted)\.py .*": "takes minutes",
    r"gpt2-recipes selftest": "takes 20 seconds; tests/test_selftest.py runs its checks",
    r"python scripts/benchmark\.py .*": "takes hours; tests/test_benchmark.py runs its cases",
    r"python scripts/benchmarks/corpus\.py .*": "takes an hour; see tests/test_prepared.py",
    r"python scripts/benchmarks/prepared\.py .*": "takes minutes; see tests/test_prepared.py",
    r"python scripts/benchmarks/exported\.py .*": "takes minutes; tests/exporting has its formats",
    r"llama-cli .*": "needs llama.cpp; tests/exporting/test_gguf_file.py has its Python package",
    r"rm -rf ~/.*": "deletes what the user of this machine has prepared",
    r"python scripts/benchmarks/planning\.py .*": "takes hours; tests/planning has its cases",
    r"python scripts/benchmarks/stream\.py .*": "writes and reads 2 GB",
    r"python scripts/stock_traps\.py": "test_readme.py runs it",
    r"python scripts/helpdesk_data\.py .*": "writes more data than the pages are tested with",
}
"""Commands that are not executed here, each with the reason."""
STOPS = {
    r"gpt2-recipes doctor --config-file .*multi_gpu\.yaml": (1, "asks for a GPU"),
    r"(gpt2-recipes train|accelerate launch) .*(multi_gpu|single_gpu|fsdp2).*": (
        2,
        "asks for a GPU",
    ),
    r"accelerate launch --mixed_precision fp16 .*": (2, "mixed_precision fp16 needs a GPU"),
    r"gpt2-recipes run .*--gpus 2.*": (2, "2 requested, and this machine shows none"),
    r"gpt2-recipes lm-eval .*lambada_openai": (1, "'EleutherAI/lambada_openai' doesn't exist"),
}
"""Commands that are executed until they need what is not here: exit code and message."""
EXECUTED = [page for page in PAGES if blocks_of(page, "bash") or blocks_of(page, "python")]
GPT2 = """
import os
import torch
from huggingface_hub import HfApi
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained("runs/helpdesk-pretrain")
eos = tokenizer.eos_token_id
size = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 1024}
config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=eos, eos_token_id=eos, **size)
GPT2LMHeadModel(config).save_pretrained("gpt2")
tokenizer.save_pretrained("gpt2")
api = HfApi(token="hf_openai")
api.create_repo("openai-community/gpt2", private=False)
api.upload_folder(repo_id="openai-community/gpt2", folder_path="gpt2")
"""
"""Puts a small model onto the Hub under the name of GPT-2."""


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory):
    """The process, as a user of the Hub with an empty cache."""
    home = tmp_path_factory.mktemp("home")
    with CommandServer(tmp_path_factory.mktemp("log"), environment(hub, home)) as started:
        yield started


@pytest.fixture(scope="module")
def begun(server, hub, helpdesk, tmp_path_factory):
    """A folder with data, and the quickstart's base and classifier on the Hub."""
    folder = tmp_path_factory.mktemp("begun")
    for name in ("recipes", "scripts", "accelerate_configs", "pipelines"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").mkdir()
    shutil.copytree(helpdesk, folder / "data" / "helpdesk")
    write_own_data(folder, tmp_path_factory.mktemp("source"))
    write_questions(folder / "data" / "trec")
    launch = "accelerate launch --config_file accelerate_configs/cpu.yaml recipes"
    server.succeed(folder, f"{launch}/helpdesk_pretrain.py --push-to local/helpdesk-pretrain")
    hub.tokens["hf_openai"] = ("openai-community", "write")
    code, printed = server.run(folder, "python", "-c", GPT2)
    assert code == 0, printed
    tune = f"{launch}/helpdesk_classify_lora_8bit.py --model.name-or-path local/helpdesk-pretrain"
    published = "--output-dir published --push-to local/helpdesk-classify-lora-8bit"
    server.succeed(folder, f"{tune} {published}")
    return folder


@pytest.fixture
def place(begun, tmp_path):
    """A copy of that folder for one page."""
    folder = tmp_path / "place"
    shutil.copytree(begun, folder, symlinks=True)
    return folder


def write_own_data(folder: Path, source: Path) -> None:
    """Write the files of one's own that the pages name: tables of texts and labels, and texts."""
    module = load_module(ROOT / "scripts" / "helpdesk_data.py")
    module.write(source, seed=2, num_train=200, num_test=8, num_documents=40)
    lines = (source / "classify" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    tables = {
        "tickets": ("text", "queue"),
        "news": ("title", "label"),
        "sms": ("v2", "v1"),
        "reviews": ("sentence", "label"),
    }
    for name, (text, label) in tables.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow([text, label])
            writer.writerows([row["text"], row["queue"]] for row in rows)
    shutil.copy(source / "classify" / "train.jsonl", folder / "tickets.jsonl")
    (folder / "texts").mkdir()
    (folder / "texts" / "all.txt").write_text("\n".join(row["text"] for row in rows))


def write_questions(folder: Path) -> None:
    """Write questions of two kinds, as data/trec has them."""
    folder.mkdir()
    for split, number in (("train", 64), ("test", 16)):
        rows = [
            {"text": f"{('Who', 'Where')[i % 2]} is {i}?", "label": ("HUM", "LOC")[i % 2]}
            for i in range(number)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def as_user(text: str) -> str:
    """Return a command or a block with this Hub's user in place of `me`."""
    return re.sub(r"(?<![\w/])(me|USER)/", "local/", text)


def blocks_in_order(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each block of commands or Python, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def expectation(command: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it prints."""
    return next((each for rule, each in STOPS.items() if re.fullmatch(rule, command)), (0, ""))


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.stem)
def test_the_commands_of_a_page_do_what_it_says_in_its_order(page, place, server):
    for language, block in blocks_in_order(page):
        if language == "python":
            if block.startswith("RECIPE = "):  # a part of a file, which test_readme.py compares
                continue
            code, printed = server.run(place, "python", "-c", as_user(block))
            assert code == 0, f"{page.name}:\n{block}\n{printed[-3000:]}"
            continue
        for command in commands_of(block):
            if any(re.fullmatch(rule, command) for rule in NOT_EXECUTED):
                continue
            expected, text = expectation(command)
            code, printed = server.run(place, *shlex.split(as_user(command)))
            assert code == expected, f"{page.name}: {command}\n{printed[-3000:]}"
            assert text in printed
            assert SECRET not in printed


def test_each_exception_is_still_needed():
    commands = [
        command
        for page in PAGES
        for block in blocks_of(page, "bash")
        for command in commands_of(block)
    ]
    for rule in (*NOT_EXECUTED, *STOPS):
        assert any(re.fullmatch(rule, command) for command in commands), rule
