"""Save a result so that it loads with its labels, and load it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer

from pipelines.data import is_local
from pipelines.models import load_base
from pipelines.recipe import Model, Problem, Recipe, RecipeError, Scratch

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "bitsandbytes")


def pin(recipe: Recipe) -> Recipe:
    """Return the recipe with the commit of every Hub repository in place of its revision.

    Two runs of the result then read the same bytes. With HF_HUB_OFFLINE the cache decides, and
    nothing is pinned. Raise RecipeError for what is neither on disk nor on the Hub.
    """
    problems: list[Problem] = []
    model: Model | Scratch = recipe.model
    if isinstance(model, Model):
        model = pin_model(model, "model", problems)
    elif isinstance(model.tokenizer, Model):
        model = replace(model, tokenizer=pin_model(model.tokenizer, "model.tokenizer", problems))
    source = recipe.task.dataset
    if not is_local(source):
        commit = commit_of(source.path, source.revision, "dataset", "task.dataset.path", problems)
        source = replace(source, revision=commit)
    if problems:
        raise RecipeError(problems)
    return replace(recipe, model=model, task=replace(recipe.task, dataset=source))


def pin_model(model: Model, path: str, problems: list[Problem]) -> Model:
    """Return a checkpoint with its commit, or unchanged if it is a folder."""
    name = model.name_or_path
    if Path(name).is_dir():
        return model
    return replace(
        model,
        revision=commit_of(name, model.revision, "model", f"{path}.name_or_path", problems),
    )


def commit_of(
    name: str, revision: str | None, kind: str, path: str, problems: list[Problem]
) -> str | None:
    """Return the commit that `revision`, or the default branch, names on the Hub now."""
    if is_offline_mode():
        if kind == "model" and try_to_load_from_cache(name, "config.json") is None:
            text = f"{name!r} is no folder and not in the cache, and HF_HUB_OFFLINE is set."
            problems.append(Problem(path, text))
        return revision
    try:
        return HfApi().repo_info(name, revision=revision, repo_type=kind).sha
    except RepositoryNotFoundError:
        problems.append(Problem(path, f"{name!r} is no folder and no {kind} on the Hub."))
    except RevisionNotFoundError:
        problems.append(Problem(path, f"{name!r} has no revision {revision!r}."))
    except HFValidationError:
        problems.append(Problem(path, f"{name!r} is no folder and no Hub id."))
    return None


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
