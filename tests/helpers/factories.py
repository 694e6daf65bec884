"""Tasks, rows and recipes for tests."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_module(path: Path):
    """Import a file that is run by path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


TASKS = (
    "causal_lm",
    "text_classification",
    "question_answering",
    "instruction_tuning",
    "preference_tuning",
)
METHODS = ("full", "lora", "8bit", "4bit")
CASES = [(t, m) for t in TASKS for m in METHODS if (t, m) != ("preference_tuning", "full")]
"""Every task with every method; DPO needs an adapter, and its base as the reference."""


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


def short_recipe(task, checkpoint: Path, folder: Path, *, train: dict | None = None, **options):
    """Return a recipe that trains a task on a checkpoint for four steps, with no warm-up.

    `train` has further options of the training, `options` further fields of the recipe.
    """
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import Model, Train

    steps = {"max_steps": 4, "learning_rate": 1e-2, "warmup_steps": 0}
    return Recipe(
        name=folder.name.replace("_", "-"),
        task=task,
        model=Model(name_or_path=str(checkpoint)),
        train=Train(**(steps | (train or {}))),
        output_dir=str(folder),
        **options,
    )


def classified(i: int) -> dict:
    """Return a row to classify; such rows are of all lengths."""
    return {"text": "lamp " * (1 + i * 7 % 40), "label": "ab"[i % 2]}


def answered(i: int) -> dict:
    """Return a row with a question, or one without an answer; such rows are of all lengths."""
    context = "lamp " * (i * 7 % 40) + "desk"
    found = {"text": ["desk"], "answer_start": [len(context) - 4]}
    answers = found if i % 3 else {"text": [], "answer_start": []}
    return {"id": str(i), "question": "What?", "context": context, "answers": answers}


def make_tasks_worth_packing(helpdesk: Path, folder: Path) -> dict:
    """Return one task of each kind; rows to classify and to answer are of all lengths."""
    tasks = make_tasks(helpdesk)
    for name, row in (("text_classification", classified), ("question_answering", answered)):
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps(row(i)) for i in range(40)))
        source = replace(tasks[name].dataset, path=str(file), eval_split=None)
        tasks[name] = replace(tasks[name], dataset=source)
    tasks["text_classification"] = replace(tasks["text_classification"], label_column="label")
    return tasks


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
