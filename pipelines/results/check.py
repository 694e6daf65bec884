"""Check a downloaded result against its recipe before anything is built from it.

Nothing here runs code of a result, and every size that a file states is bounded before it costs
memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.errors import Problem, RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import shortened
from pipelines.recipe.values import Model
from pipelines.results.check_adapter import check_adapter_files
from pipelines.results.check_model import check_model_files, read_model_config
from pipelines.results.check_tokenizer import check_tokenizer_files
from pipelines.results.sidecar import read_sidecar, tuned_options

READ = (".json", ".safetensors", ".jinja", ".txt")


def check_result(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return recipe and sidecar of a result whose files agree with each other and with the recipe.

    Raise RecipeError, which names file and field, for others, and NonFiniteError for weights that
    are not finite.
    """
    check_files(folder)
    recipe, sidecar = Recipe.from_file(folder / "recipe.json"), read_sidecar(folder / "task.json")
    check_sidecar(recipe, sidecar)
    if recipe.lora is None:
        config = read_model_config(folder)
        check_tokenizer_files(folder, recipe, config.get("vocab_size"))
        check_model_files(folder, recipe, config, tuple(sidecar["labels"]))
    else:
        check_tokenizer_files(folder, recipe, sidecar["base"]["vocab_size"])
        check_adapter_files(folder, recipe)
    return recipe, sidecar


def check_files(folder: Path) -> None:
    """Raise RecipeError for files that are missing, and for names that are not of files."""
    problems = []
    for file in sorted(folder.iterdir()):
        if file.suffix in READ and not file.is_file():  # a folder, a device, a link to nothing
            problems.append(Problem(file.name, "is not a file."))
    for name in ("recipe.json", "task.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            problems.append(Problem(name, f"is missing in {folder}."))
    if problems:
        raise RecipeError(problems)


def check_sidecar(recipe: Recipe, sidecar: dict[str, Any]) -> None:
    """Raise RecipeError for a task.json of another recipe."""
    problems = []
    labels, task = sidecar["labels"], recipe.task
    if sidecar["task"] != type(task).__name__:
        text = f"task is {sidecar['task']!r}, but the recipe's is {type(task).__name__!r}."
        problems.append(Problem("task.json", text))
    if bool(labels) != task.has_labels:
        text = "has labels, but its task has none." if labels else "labels are missing."
        problems.append(Problem("task.json", text))
    found = tuned_options(sidecar)
    for name in sorted(found.keys() ^ set(task.tunes)):
        text = "but its recipe decides none" if name in found else "which its recipe decides"
        problems.append(
            Problem("task.json", f"has {'' if name in found else 'no '}{name}, {text}.")
        )
    base, model = sidecar["base"], recipe.model
    if (base is None) != (recipe.lora is None):
        text = "base is for an adapter, and the recipe has none." if base else "base is missing."
        problems.append(Problem("task.json", text))
    elif base is not None and isinstance(model, Model):
        for name in ("name_or_path", "revision"):
            if base[name] != getattr(model, name):
                text = f"base.{name} is {base[name]!r}, but the recipe's is "
                text = shortened(f"{text}{getattr(model, name)!r}.")
                problems.append(Problem("task.json", text))
    if problems:
        raise RecipeError(problems)
