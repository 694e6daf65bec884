"""The model card of a result: what it is, how to load it, what it scored and how it was trained."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipelines.models.quantization import HEADS
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import to_json_value
from pipelines.recipe.values import NF4, Int8, Model, Scratch
from pipelines.tasks.base import literal


def model_card(recipe: Recipe, sidecar: dict[str, Any], repo: str) -> str:
    """Return README.md for the Hub, metadata first."""
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

{results(recipe, sidecar)}{results_of_merged(sidecar)}

```bash
gpt2-recipes evaluate {repo}
```

downloads it, scores it again and compares with this table.

![Loss over the training steps](training_curve.png)

## Training

{training(recipe, sidecar)}

The whole recipe stands in `recipe.json`.

## Limits

{recipe.task.limits} The score is of one run, on data like its training data.
"""


def metadata(recipe: Recipe, sidecar: dict[str, Any], repo: str) -> dict[str, Any]:
    """Return what the Hub reads of a card."""
    source, metrics = recipe.task.dataset, sidecar["metrics"]
    local, tag = source.path.startswith("./"), recipe.task.pipeline_tag
    dataset = {
        "name": one_line(dataset_name(recipe)),
        "type": re.sub(r"[^\w.-]+", "-", Path(source.path).name) if local else source.path,
        "split": scored_split(recipe, sidecar)[0],
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
    if merged := sidecar.get("merged"):
        base = at(merged["base"]["name_or_path"], merged["base"]["revision"])
        adapter = f"the LoRA adapter {code(merged['adapter'])}, merged into its base {base}"
        return f"A GPT-2-style model that {recipe.task.does}: {adapter} in full precision."
    if recipe.lora is None:
        return f"A GPT-2-style model that {recipe.task.does}."
    bits = {"NoneType": "", "Int8": " in 8 bits", "NF4": " in 4 bits (NF4)"}
    assert isinstance(recipe.model, Model)
    base = f"{code(recipe.model.name_or_path)}{bits[type(recipe.quantization).__name__]}"
    head = " Its head is in the adapter." if recipe.task.head else ""
    return f"A LoRA adapter that {recipe.task.does}, trained on {base}.{head}"


def own_lines(recipe: Recipe, repo: str) -> str:
    """Return the lines that load and use a result with this project."""
    row = ", ".join(f"{literal(k)}: {literal(v)}" for k, v in recipe.task.example_row().items())
    rows, loaded = f'Examples([{{{row}}}], "rows")', f'loaded = load_result("{repo}")'
    load = "from pipelines.hub.load import load_result"
    examples = "from pipelines.data.rows import Examples"
    if recipe.task.head:
        ask = "from pipelines.inference.predict import predict"
        return "\n".join([load, ask, examples, "", loaded, f"print(predict(loaded, {rows}))"])
    lines = [
        "from pipelines.models.generation import continue_prompts",
        load,
        examples,
        "",
        loaded,
        "task = loaded.recipe.task",
        f"prompts = task.prompts({rows}, loaded.tokenizer)",
        "options = task.default_generation",
        "written = continue_prompts(loaded.model, loaded.tokenizer, prompts, options)",
        "print(written[0].text)",
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
        pad = f"pad_token_id={sidecar['pad_token_id']}"
        arguments = [pad, *task.head_arguments(tuple(sidecar["labels"]))]
    else:
        source = [literal(repo)]
    call = [*source, "dtype=torch.float32", *arguments, *quantized]
    loading = f"{task.auto_class}.from_pretrained(\n" + "".join(f"    {a},\n" for a in call) + ")"
    lines = ["import torch"]
    lines += ["from peft import PeftModel"] if recipe.lora else []
    lines += task.example_imports
    lines += [f"from transformers import {', '.join(sorted(names))}", ""]
    if sidecar["labels"] and recipe.lora:
        lines += [f"labels = {json.dumps(sidecar['labels']).replace('`', chr(92) + 'u0060')}"]
    if recipe.lora:
        lines += [f"base = {loading}", f"model = PeftModel.from_pretrained(base, {literal(repo)})"]
    else:
        lines += [f"model = {loading}"]
    lines += ["model.eval()", f"tokenizer = AutoTokenizer.from_pretrained({literal(repo)})", ""]
    return "\n".join([*lines, *task.example_lines()])


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


def scored_split(recipe: Recipe, sidecar: dict[str, Any]) -> tuple[str, str]:
    """Return the split that a result was scored on, and its description."""
    source = recipe.task.dataset
    part = f"{source.eval_fraction:.0%} of the rows" if source.eval_split is None else "all"
    recorded = {"split": source.eval_split or source.train_split, "part": part}
    recorded |= sidecar["dataset"].get("splits", {}).get("eval", {})
    split = recorded["split"]
    return split, split if recorded["part"] == "all" else f"{recorded['part']} of {split}"


def results(recipe: Recipe, sidecar: dict[str, Any]) -> str:
    """Return the table of scores, the primary one with its interval and baseline."""
    metrics = sidecar["metrics"]
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
    name, (_, split) = code(dataset_name(recipe)), scored_split(recipe, sidecar)
    head = f"On {metrics['rows']:,} rows of {name}, {safe(split)}"
    if "rows_skipped" in metrics:
        head += f", without {metrics['rows_skipped']:,} rows that cannot be used"
    table = "\n".join(["| metric | value |", "|---|---|", *(row for row in rows if row)])
    return f"{head}:\n\n{table}"


def results_of_merged(sidecar: dict[str, Any]) -> str:
    """Return what a merged model's scores are scores of; nothing for another result."""
    match sidecar.get("merged"):
        case {"score_of": "merged", "adapter_metric": name, "adapter_score": before}:
            return f"\n\nOn the base as it was trained on, the adapter's {name} was {before:.4f}."
        case {"score_of": "adapter"}:
            return "\n\nThese are the scores of the adapter; the merged model was not scored."
    return ""


def training(recipe: Recipe, sidecar: dict[str, Any]) -> str:
    """Return the table of what was trained on what, and how."""
    train, source = recipe.train, recipe.task.dataset
    if isinstance(recipe.model, Scratch):
        base = "random weights, {} layers, {} heads, width {}".format(*recipe.model.widths)
    else:
        base = at(recipe.model.name_or_path, recipe.model.revision)
    merged = sidecar.get("merged")
    method = "full fine-tuning"
    if recipe.lora or merged:
        lora = merged["lora"] if merged else to_json_value(recipe.lora)
        targets = ", ".join(lora["target_modules"])
        method = f"LoRA, r {lora['r']}, alpha {lora['lora_alpha']}, on {targets}"
    if merged and merged["quantization"]:
        method += f", on the base in {merged['quantization']['type']}"
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
