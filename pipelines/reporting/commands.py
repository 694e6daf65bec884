"""The commands that use the result of a run. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model

COMPRESSION = (
    "prune_heads",
    "prune_neurons",
    "sparsity",
    "recover_steps",
    "recover_learning_rate",
    "distill",
    "bits",
)
"""Flags of `compress`, as task.json records them."""


def command_again(folder: str, sidecar: dict[str, Any]) -> str:
    """Return the command that makes a result again, in another folder.

    `folder` is the result's, and `sidecar` its task.json.
    """
    again = f"{folder.rstrip('/')}-again"
    if record := sidecar.get("compressed"):
        words = ["compress", record["source"], again]
        if record.get("source_revision"):
            words += ["--revision", record["source_revision"]]
        words += flags_of(record, COMPRESSION)
    elif record := sidecar.get("merged"):
        words = ["merge", record["adapter"], again]
    else:
        words = ["train", f"{folder}/recipe.json", "--output-dir", again]
    return shlex.join(["gpt2-recipes", *words])


def flags_of(record: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return the flags that give the values of a record which are set."""
    flags: list[str] = []
    for name in names:
        value = record.get(name)
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, f"{value:g}"]
    return flags


def next_commands(recipe: Recipe) -> Iterator[str]:
    """Yield the commands that evaluate, use, merge and publish the result of a run."""
    folder = str(recipe.folder)

    def line(*words: str) -> str:
        return shlex.join(["gpt2-recipes", *words])

    yield line("evaluate", folder)
    if recipe.task.learns_tokens:
        yield line("generate", folder, "TEXT")
    else:
        yield line("predict", folder, "FILE.csv")
    if recipe.lora is not None:
        yield line("merge", folder, f"{folder}-merged")
    if recipe.push_to is None:
        yield line("publish", folder, "USER/NAME", *base_options(recipe))
    else:
        yield line("evaluate", recipe.push_to)


def base_options(recipe: Recipe) -> list[str]:
    """Return the options that publish the base of an adapter too, where it is on this machine."""
    if recipe.lora is None or not isinstance(recipe.model, Model):
        return []
    return ["--with-base", "USER/BASE"] if Path(recipe.model.name_or_path).is_dir() else []
