"""Save a result so that it loads with its labels, and load it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer

from pipelines.models import load_base
from pipelines.recipe import Model, Recipe

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "bitsandbytes")


@dataclass(frozen=True)
class Loaded:
    """A result, ready to use."""

    recipe: Recipe
    model: Any
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    metrics: dict[str, Any]


def save(
    trainer: Trainer,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    metrics: dict[str, Any],
) -> Path:
    """Write adapter or model, tokenizer, recipe.json and task.json; rank 0 alone."""
    folder = recipe.folder
    if trainer.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if recipe.lora is None:
            model.config.use_cache = True
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
        sidecar = {
            "task": type(recipe.task).__name__,
            "labels": list(labels),
            "pad_token_id": tokenizer.pad_token_id,
            "max_length": tokenizer.model_max_length,
            "versions": {name: version(name) for name in LIBRARIES},
            "metrics": metrics,
        }
        text = json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
        (folder / "task.json").write_text(text, encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return folder


def load_adapter(folder: str | Path) -> Loaded:
    """Rebuild base, adapter, head, tokenizer and labels from a result's folder.

    Raise FileNotFoundError for a folder that no run has written.
    """
    folder = Path(folder)
    recipe = Recipe.from_json((folder / "recipe.json").read_text(encoding="utf-8"))
    sidecar = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    labels = tuple(sidecar["labels"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = recipe.model if recipe.lora else Model(name_or_path=str(folder))
    assert isinstance(source, Model)
    model: Any = load_base(
        recipe.task, source, labels, quantization=recipe.quantization, tokenizer=tokenizer
    )
    if recipe.lora is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder))
    if not recipe.quantization:
        model = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = replace(recipe, output_dir=str(folder))
    return Loaded(recipe, model.eval(), tokenizer, labels, sidecar["metrics"])
