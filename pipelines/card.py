"""The model card of a result: what it is, how to load it, what it scored and how it was trained."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipelines.models import HEADS
from pipelines.recipe import NF4, Int8, Model, Recipe, Scratch
from pipelines.tasks import CausalLM, QuestionAnswering, TextClassification
from pipelines.tasks.question_answering import CONTRACTION_OR_SYMBOL

PIPELINE_TAGS = {
    "CausalLM": "text-generation",
    "TextClassification": "text-classification",
    "QuestionAnswering": "question-answering",
}
LIMITS = {
    "CausalLM": "It repeats what its training text says, also where that is wrong or offensive.",
    "TextClassification": "It gives every text one of its labels, also a text of another kind.",
    "QuestionAnswering": "It answers with a span of the context, also where the context is wrong.",
}


def model_card(recipe: Recipe, sidecar: dict[str, Any], repo: str) -> str:
    """Return README.md for the Hub, metadata first."""
    kind, metrics = sidecar["task"], sidecar["metrics"]
    front = yaml.safe_dump(metadata(recipe, sidecar, repo), sort_keys=False, allow_unicode=True)
    return f"""---
{front}---

# {safe(repo.split("/")[-1])}

{summary(recipe, sidecar)}

## Use it

```python
{own_lines(recipe, repo)}
```

Without this project, by peft and transformers alone:

```python
{plain_lines(recipe, sidecar, repo)}
```

## Results

{results(recipe, metrics)}

```bash
gpt2-recipes evaluate {repo}
```

downloads it, scores it again and compares with this table.

![Loss over the training steps](training_curve.png)

## Training

{training(recipe, sidecar)}

The whole recipe stands in `recipe.json`.

## Limits

{LIMITS[kind]} The score is of one run, on data like its training data.
"""


def metadata(recipe: Recipe, sidecar: dict[str, Any], repo: str) -> dict[str, Any]:
    """Return what the Hub reads of a card."""
    source, metrics = recipe.task.dataset, sidecar["metrics"]
    local, tag = source.path.startswith("./"), PIPELINE_TAGS[sidecar["task"]]
    dataset = {
        "name": one_line(dataset_name(recipe)),
        "type": re.sub(r"[^\w.-]+", "-", Path(source.path).name) if local else source.path,
        "split": source.eval_split or source.train_split,
    }
    if source.name:
        dataset["config"] = source.name
    if source.revision and not local:
        dataset["revision"] = source.revision
    primary = metrics["primary"]
    result = {
        "task": {"type": tag},
        "dataset": dataset,
        "metrics": [{"type": primary, "value": metrics[primary], "name": primary}],
    }
    fields: dict[str, Any] = {}
    if isinstance(recipe.model, Model) and not recipe.model.name_or_path.startswith("./"):
        relation = "adapter" if recipe.lora else "finetune"
        fields = {"base_model": recipe.model.name_or_path, "base_model_relation": relation}
    fields |= {
        "library_name": "peft" if recipe.lora else "transformers",
        "pipeline_tag": tag,
        "tags": ["gpt2-recipes", *(["lora"] if recipe.lora else [])],
    }
    if not local:
        fields["datasets"] = [source.path]
    name = repo.split("/")[-1]
    return fields | {"metrics": [primary], "model-index": [{"name": name, "results": [result]}]}


def dataset_name(recipe: Recipe) -> str:
    """Return the data set with its configuration."""
    source = recipe.task.dataset
    return f"{source.path} ({source.name})" if source.name else source.path


def summary(recipe: Recipe, sidecar: dict[str, Any]) -> str:
    """Return the sentence at the top of the card."""
    what = {
        "CausalLM": "predicts the next token",
        "TextClassification": "classifies texts",
        "QuestionAnswering": "answers questions by spans of a context",
    }[sidecar["task"]]
    if recipe.lora is None:
        return f"A GPT-2-style model that {what}."
    bits = {"NoneType": "", "Int8": " in 8 bits", "NF4": " in 4 bits (NF4)"}
    assert isinstance(recipe.model, Model)
    base = f"{code(recipe.model.name_or_path)}{bits[type(recipe.quantization).__name__]}"
    return f"A LoRA adapter that {what}, trained on {base}. Its head is in the adapter."


def own_lines(recipe: Recipe, repo: str) -> str:
    """Return the lines that load and use a result with this project."""
    lines = ["from pipelines.hub import load_adapter"]
    if isinstance(recipe.task, CausalLM):
        return "\n".join([*lines, "", f'loaded = load_adapter("{repo}")'])
    if isinstance(recipe.task, QuestionAnswering):
        row = f'{literal(recipe.task.question_column)}: "Who wrote?", '
        row += f'{literal(recipe.task.context_column)}: "Ada wrote on Monday."'
    else:
        assert isinstance(recipe.task, TextClassification)
        columns = [c for c in (recipe.task.text_column, recipe.task.text_pair_column) if c]
        row = ", ".join(f'{literal(column)}: "A text to classify."' for column in columns)
    lines += [
        "from pipelines.predict import predict",
        "from pipelines.tasks.base import Examples",
        "",
        f'loaded = load_adapter("{repo}")',
        f'print(predict(loaded, Examples([{{{row}}}], "rows")))',
    ]
    return "\n".join(lines)


def plain_lines(recipe: Recipe, sidecar: dict[str, Any], repo: str) -> str:
    """Return the lines that load and use a result with peft and transformers alone."""
    task = recipe.task
    names = [task.auto_class, "AutoTokenizer"]
    arguments = []
    quantized = quantization_lines(recipe)
    if recipe.lora:
        assert isinstance(recipe.model, Model)
        names += ["BitsAndBytesConfig"] if quantized else []
        source = [literal(recipe.model.name_or_path)]
        source += [f"revision={literal(recipe.model.revision)}"] if recipe.model.revision else []
        arguments = head_lines(task, sidecar)
    else:
        source = [literal(repo)]
    call = [*source, "dtype=torch.float32", *arguments, *quantized]
    loading = f"{task.auto_class}.from_pretrained(\n" + "".join(f"    {a},\n" for a in call) + ")"
    lines = ["import torch"]
    lines += ["from peft import PeftModel"] if recipe.lora else []
    if isinstance(task, QuestionAnswering):
        lines += ["from tokenizers import Regex", "from tokenizers import pre_tokenizers as pre"]
    lines += [f"from transformers import {', '.join(sorted(names))}", ""]
    if sidecar["labels"] and recipe.lora:
        lines += [f"labels = {json.dumps(sidecar['labels']).replace('`', chr(92) + 'u0060')}"]
    if recipe.lora:
        lines += [f"base = {loading}", f"model = PeftModel.from_pretrained(base, {literal(repo)})"]
    else:
        lines += [f"model = {loading}"]
    lines += ["model.eval()", f"tokenizer = AutoTokenizer.from_pretrained({literal(repo)})", ""]
    return "\n".join([*lines, *using_lines(recipe, sidecar)])


def head_lines(task: Any, sidecar: dict[str, Any]) -> list[str]:
    """Return the arguments of from_pretrained that size the head and name its labels."""
    lines = [f"pad_token_id={sidecar['pad_token_id']}"]
    if isinstance(task, TextClassification):
        lines.append(f"problem_type={literal(task.problem_type)}")
        if sidecar["labels"]:
            lines.append("num_labels=len(labels)")
            lines.append("id2label=dict(enumerate(labels))")
            lines.append("label2id={name: i for i, name in enumerate(labels)}")
        else:
            lines.append("num_labels=1")
    return lines


def quantization_lines(recipe: Recipe) -> list[str]:
    """Return the argument of from_pretrained that loads the base in 8 or 4 bits."""
    match recipe.quantization:
        case Int8(llm_int8_threshold=threshold):
            options = f"load_in_8bit=True, llm_int8_threshold={threshold}"
        case NF4(bnb_4bit_use_double_quant=double):
            options = 'load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            options += f"bnb_4bit_use_double_quant={double}, bnb_4bit_compute_dtype=torch.float32"
        case _:
            return []
    skipped = f"llm_int8_skip_modules={json.dumps(HEADS)}"
    return [f"quantization_config=BitsAndBytesConfig({options}, {skipped})"]


def using_lines(recipe: Recipe, sidecar: dict[str, Any]) -> list[str]:
    """Return the lines that ask a loaded model."""
    task = recipe.task
    if isinstance(task, CausalLM):
        return [
            'inputs = tokenizer("Good morning", return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=20, do_sample=False)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    if isinstance(task, TextClassification):
        text = '["A text to classify.", "And another one."]'
        if task.text_pair_column:
            text = '["A text" + tokenizer.eos_token + "and its second part."]'
        cut = f"truncation=True, max_length={task.max_length}"
        lines = [
            f'batch = tokenizer({text}, padding=True, {cut}, return_tensors="pt")',
            "with torch.inference_mode():",
            "    logits = model(**batch).logits",
        ]
        if task.problem_type == "regression":
            return [*lines, "print(logits[:, 0].tolist())"]
        if task.problem_type == "multi_label_classification":
            found = "[[model.config.id2label[i] for i in row.nonzero()[:, 0].tolist()] "
            return [*lines, f"print({found}for row in logits > 0])"]
        return [*lines, "print([model.config.id2label[i] for i in logits.argmax(-1).tolist()])"]
    assert isinstance(task, QuestionAnswering)
    longest = task.max_answer_length
    lines = [
        'question, context = "Who wrote?", "Ada wrote on Monday."',
        'asked = tokenizer(question, add_special_tokens=False)["input_ids"]',
        "backend = tokenizer.backend_tokenizer  # digits and punctuation are not merged",
        f'split = pre.Split(Regex(r"{CONTRACTION_OR_SYMBOL}"), behavior="isolated")',
        "backend.pre_tokenizer = pre.Sequence([split, backend.pre_tokenizer])",
        "read = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)",
        "eos = tokenizer.eos_token_id  # question, context and the slot of no answer",
        'ids = torch.tensor([[*asked, eos, *read["input_ids"], eos]])',
        "with torch.inference_mode():",
        "    output = model(input_ids=ids)",
        "start, end = output.start_logits[0], output.end_logits[0]",
        "first = len(asked) + 1",
        "scores = start[first:-1, None] + end[None, first:-1]",
        f"allowed = torch.ones_like(scores).triu().tril({longest - 1}).bool()",
        'scores = scores.masked_fill(~allowed, float("-inf"))',
        "i, j = divmod(int(scores.argmax()), len(scores))",
        'answer = context[read["offset_mapping"][i][0] : read["offset_mapping"][j][1]].strip()',
    ]
    if task.version_2_with_negative:
        lines += [
            f"if start[-1] + end[-1] > scores.max() + {task.null_score_diff_threshold}:",
            '    answer = ""',
        ]
    return [*lines, "print(answer)"]


def results(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """Return the table of scores, the primary one with its interval and baseline."""
    primary = metrics["primary"]
    low, high = metrics["confidence_interval"]
    rows = [f"| {primary} | {metrics[primary]:.4f} (95 % {low:.4f} to {high:.4f}) |"]
    for name, value in metrics.get("baseline", {}).items():
        rows.append(f"| {primary}, {safe(name)} | {value:.4f} |")
    shown = {primary, "seconds", "rows"}
    for name, value in metrics.items():
        if name not in shown and isinstance(value, int | float):
            rows.append(f"| {safe(name)} | {value:.4f} |" if isinstance(value, float) else "")
    for name, value in metrics.get("f1_per_class", {}).items():
        rows.append(f"| F1 of {code(name)} | {value:.4f} |")
    source = recipe.task.dataset
    split = source.eval_split or f"the last {source.eval_fraction:.0%} of {source.train_split}"
    head = f"On {metrics['rows']:,} rows of {code(dataset_name(recipe))}, {safe(split)}:"
    table = "\n".join(["| metric | value |", "|---|---|", *(row for row in rows if row)])
    return f"{head}\n\n{table}"


def training(recipe: Recipe, sidecar: dict[str, Any]) -> str:
    """Return the table of what was trained on what, and how."""
    train, source = recipe.train, recipe.task.dataset
    if isinstance(recipe.model, Scratch):
        base = "random weights, {} layers, {} heads, width {}".format(*recipe.model.widths)
    else:
        base = at(recipe.model.name_or_path, recipe.model.revision)
    method = "full fine-tuning"
    if recipe.lora:
        lora = recipe.lora
        method = f"LoRA, r {lora.r}, alpha {lora.lora_alpha}, on {', '.join(lora.target_modules)}"
    length = f"{train.num_train_epochs:g} epochs"
    if train.max_steps is not None:
        length = f"{train.max_steps:,} steps"
    versions = ", ".join(f"{name} {number}" for name, number in sidecar["versions"].items())
    rows = {
        "base": base,
        "data": at(dataset_name(recipe), source.revision),
        "rows of the score": f"SHA-256 {code(sidecar['dataset']['eval_rows_sha256'])}",
        "method": safe(method),
        "length": f"{length}, {train.global_batch_size} rows a step",
        "learning rate": f"{train.learning_rate:g}, {train.lr_scheduler_type}",
        "seed": str(train.seed),
        "hardware": safe(sidecar["hardware"]),
        "time": f"{sidecar['metrics'].get('seconds', 0):,.0f} seconds, evaluation included",
        "versions": safe(versions),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def at(name: str, revision: str | None) -> str:
    """Return a name with its revision."""
    return code(name) + (f" at {code(revision)}" if revision else "")


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def safe(text: str) -> str:
    """Return a text that is neither HTML nor Markdown, for a cell of a table."""
    escaped = html.escape(one_line(text))
    return re.sub(r"[\\`*{}\[\]|#~!]", lambda match: f"&#{ord(match[0])};", escaped)


def code(text: str) -> str:
    """Return a text in the type of code; Markdown is not read inside."""
    return f"<code>{safe(text)}</code>"


def literal(text: str | None) -> str:
    """Return a Python string literal that cannot close a Markdown fence."""
    return json.dumps(text).replace("`", "\\u0060")
