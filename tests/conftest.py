"""Small real models and data, made once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # and not ACCELERATE_USE_CPU, which users do not set
os.environ.pop("ACCELERATE_USE_CPU", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SECRET = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"  # the token of the user "local"


def load_module(path: Path):
    """Import a file that is run by path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


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


TASKS = (
    "causal_lm",
    "text_classification",
    "question_answering",
    "instruction_tuning",
    "preference_tuning",
)
METHODS = ("full", "lora", "8bit", "4bit")
CASES = [(t, m) for t in TASKS for m in METHODS if (t, m) != ("preference_tuning", "full")]
"""Every task by every method; DPO needs the base beside the adapter."""


def method(name: str, **options):
    """Return the fields of a recipe that make its method; `options` are of the adapter."""
    from pipelines.recipe.values import NF4, Int8, Lora

    quantization = {"8bit": Int8(), "4bit": NF4()}.get(name)
    return {
        "quantization": quantization,
        "lora": None if name == "full" else Lora(r=4, **options),
    }


def make_tasks(helpdesk: Path) -> dict:
    """Return one task of each kind on the helpdesk data."""
    from pipelines.data.source import DatasetSource
    from pipelines.tasks.causal_lm import CausalLM
    from pipelines.tasks.generation import Generation
    from pipelines.tasks.instruction import InstructionTuning
    from pipelines.tasks.preference import PreferenceTuning
    from pipelines.tasks.question_answering import QuestionAnswering
    from pipelines.tasks.text_classification import TextClassification

    def source(name: str) -> DatasetSource:
        return DatasetSource(path=str(helpdesk / name), eval_split="test")

    return {
        "causal_lm": CausalLM(dataset=source("documents"), block_size=64),
        "text_classification": TextClassification(
            dataset=source("classify"), label_column="queue", max_length=64
        ),
        "question_answering": QuestionAnswering(
            dataset=source("answer"), version_2_with_negative=True, max_length=128, stride=32
        ),
        "instruction_tuning": InstructionTuning(
            dataset=source("reply"),
            prompt_format="{prompt}\nReply:",
            max_length=128,
            generation=Generation(max_new_tokens=8),
        ),
        "preference_tuning": PreferenceTuning(
            dataset=source("prefer"),
            prompt_format="{prompt}\nReply:",
            max_length=128,
            generation=Generation(max_new_tokens=8),
        ),
    }


@pytest.fixture
def tasks(helpdesk):
    """One task of each kind."""
    return make_tasks(helpdesk)


def classified(i: int) -> dict:
    """Return a row to classify; such rows are of all lengths."""
    return {"text": "lamp " * (1 + i * 7 % 40), "label": "ab"[i % 2]}


def answered(i: int) -> dict:
    """Return a row with a question, or one without an answer; such rows are of all lengths."""
    context = "lamp " * (i * 7 % 40) + "desk"
    found = {"text": ["desk"], "answer_start": [len(context) - 4]}
    answers = found if i % 3 else {"text": [], "answer_start": []}
    return {"id": str(i), "question": "What?", "context": context, "answers": answers}


def first_logits(task, model, tokenizer, rows):
    """Return the logits of one batch."""
    import torch

    batch = task.collate(tokenizer.pad_token_id)([dict(row) for row in rows])
    batch.pop("labels", None)
    with torch.no_grad():
        outputs = model(**batch)
    return torch.cat([v.flatten() for k, v in outputs.items() if k.endswith("logits")])


def list_files_again(folder: Path) -> None:
    """Let task.json list the files as they are now, as somebody could who changed them."""
    from pipelines.results.files import write_manifest

    if not (folder / "task.json").is_file():
        return
    try:
        write_manifest(folder)
    except (OSError, ValueError, TypeError, RecursionError):
        return  # task.json itself is damaged


def environment(hub, home, token=SECRET) -> dict[str, str]:
    """Return the environment of a client with an empty cache."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    found = kept | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "GPT2_RECIPES_HUB_TIMEOUT": "10",  # a Hub on loopback answers soon, or not at all
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    return found | ({"HF_TOKEN": token} if token else {})


def client(hub, home, *arguments, cwd, token=SECRET, code=0):
    """Run a command against the Hub; return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(hub, home, token),
        cwd=cwd,
        timeout=280,
    )
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-3000:])
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with two accounts that records its requests."""
    from local_hub import LocalHub

    with LocalHub(tmp_path_factory.mktemp("hub")) as served:
        served.tokens = {SECRET: ("local", "write"), "hf_reader": ("local", "read")}
        served.tokens["hf_stranger"] = ("stranger", "write")
        yield served


@pytest.fixture(scope="module")
def place(tmp_path_factory, helpdesk):
    """A folder to work in, with the data at data/helpdesk as a user would have it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "data" / "helpdesk").symlink_to(helpdesk)
    return folder
