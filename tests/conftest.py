"""Fixtures: small real models and data, made once."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("ACCELERATE_USE_CPU", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

from helpers.devices import DEVICE  # noqa: E402
from helpers.factories import ROOT, load_module, make_tasks  # noqa: E402
from helpers.hub_process import SECRET  # noqa: E402


def pytest_configure(config) -> None:
    """Hide GPUs, unless the tests that need one are asked for, before anything imports torch."""
    asked = config.option.markexpr
    if "gpu" not in asked or "not gpu" in asked or DEVICE == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            ""  # and not ACCELERATE_USE_CPU, which users do not set
        )


def pytest_collection_modifyitems(items) -> None:
    """Skip tests that need a GPU where there is none, or where it is hidden.

    Those that take the fixture `device` run on a CPU where they are told to.
    """
    marked = [
        item
        for item in items
        if item.get_closest_marker("gpu")
        and not (DEVICE == "cpu" and "device" in item.fixturenames)
    ]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        reason = "needs a CUDA device, and -m gpu"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", autouse=True)
def same_environment_after_each_module():
    """Give back the variables that a module sets: the self-test's runs set those of its sandbox."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def helpdesk(tmp_path_factory) -> Path:
    """A folder with a little helpdesk data."""
    folder = tmp_path_factory.mktemp("helpdesk")
    module = load_module(ROOT / "scripts" / "helpdesk_data.py")
    module.write(folder, seed=1, num_train=64, num_test=32, num_documents=40)
    return folder


@pytest.fixture(scope="session")
def tokenizer(helpdesk):
    """A byte-level BPE of 400 tokens."""
    from pipelines.data.load import read_file
    from pipelines.models.tokenizers import load_tokenizer
    from pipelines.recipe.values import Scratch, Tokenizer

    texts = [row["text"] for row in read_file(helpdesk / "documents" / "train.jsonl").rows]
    model = Scratch(size="tiny", n_positions=256, tokenizer=Tokenizer(vocab_size=400))
    return load_tokenizer(model, texts, max_length=256)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer) -> Path:
    """A GPT-2 of 2 layers, 32 wide, as a language model's folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_layer=2,
        n_head=2,
        n_embd=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, checkpoint, helpdesk):
    """Return the folder with the adapters of tasks, by the tasks' names.

    Each is trained once, when a module first asks for it. Tests read them, and change copies.
    """
    from helpers.factories import method, short_recipe

    folder = tmp_path_factory.mktemp("adapters")

    def trained(*names: str) -> Path:
        from pipelines.flow import run

        for name in names:
            if not (folder / name).exists():
                task = make_tasks(helpdesk)[name]
                run(short_recipe(task, checkpoint, folder / name, **method("lora")))
        return folder

    return trained


@pytest.fixture(scope="session")
def odd_checkpoint(tmp_path_factory, checkpoint, tokenizer) -> Path:
    """The checkpoint with one embedding more, which two processes cannot share evenly."""
    from transformers import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("odd")
    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    model.resize_token_embeddings(len(tokenizer) + 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tasks(helpdesk):
    """One task of each kind."""
    return make_tasks(helpdesk)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with two accounts that records its requests."""
    from helpers.recording_hub import LocalHub

    with LocalHub(tmp_path_factory.mktemp("hub")) as served:
        served.tokens = {SECRET: ("local", "write"), "hf_reader": ("local", "read")}
        served.tokens["hf_stranger"] = ("stranger", "write")
        yield served


@pytest.fixture(scope="session", autouse=True)
def first_environment() -> dict[str, str]:
    """Return the variables that the tests begin with."""
    return dict(os.environ)


@pytest.fixture(scope="session")
def commands(tmp_path_factory, first_environment):
    """Run commands offline, each in a fork of a process that has imported the libraries.

    `commands.python` is an executable that takes what `sys.executable` takes, for a launcher and
    its ranks too. Where a test is about the start, memory, a terminal or variables that libraries
    read when they are imported, it starts a process by itself.
    """
    from helpers.commands import CommandServer

    with CommandServer(tmp_path_factory.mktemp("commands"), first_environment) as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory, helpdesk):
    """A folder to work in, with the data at data/helpdesk as a user would have it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "data" / "helpdesk").symlink_to(helpdesk)
    return folder
