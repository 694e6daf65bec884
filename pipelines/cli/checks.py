"""Checks of what a command was given, before seconds of imports."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipelines.errors import DataError, RecipeError
from pipelines.recipe.generation import check_greedy, merge_options
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import wrong_values
from pipelines.serving.limits import Limits
from pipelines.tasks.base import Task
from pipelines.tasks.generation import GenerationOptions
from pipelines.terminal import stop


def check_result(repo: str | Path) -> None:
    """Raise RecipeError for a folder with a damaged recipe.json, before seconds of imports."""
    file = Path(repo) / "recipe.json"
    if file.is_file():
        Recipe.from_file(file)


def check_extra(module: str, *, extra: str, verb: str) -> None:
    """Stop, naming the command that installs it, where the module of an extra is missing."""
    if importlib.util.find_spec(module) is None:
        command = f'`pip install -c constraints.txt -e ".[{extra}]"`'
        stop([f"gpt2-recipes {verb}: needs {module}, which is not installed. Use {command}."], 2)


def check_chats(repo: str, revision: str | None, options: GenerationOptions) -> None:
    """Raise DataError for a result that writes no text, RecipeError for options out of range."""
    task = read_task(repo, revision)
    task.check_generates()
    merge_options(task, options)


def check_served(repo: str, revision: str | None, limits: Limits) -> None:
    """Raise RecipeError for limits out of range, DataError for a result that predicts nothing."""
    if problems := list(wrong_values(limits, "")):
        raise RecipeError(problems)
    task = read_task(repo, revision)
    if task.head is None:
        raise DataError(
            f"{repo}: {type(task).__name__} writes texts, which transformers serves: "
            f"`gpt2-recipes merge {repo} OUT` if it is an adapter, then `transformers serve OUT`. "
            f"To talk with it here, `gpt2-recipes chat {repo}`."
        )


def check_assistance(
    repo: str,
    revision: str | None,
    options: GenerationOptions,
    *,
    num_at_once: int,
    assistant: str | None,
    prompt_lookup_num_tokens: int | None,
) -> None:
    """Raise RecipeError for assisted decoding of what is not greedy, or not one text at a time."""
    if assistant is None and prompt_lookup_num_tokens is None:
        return
    if prompt_lookup_num_tokens is not None:
        at_least_one("prompt-lookup-num-tokens", prompt_lookup_num_tokens)
    if assistant is not None and prompt_lookup_num_tokens is not None:
        stop(["--assistant: excludes --prompt-lookup-num-tokens; give one of them."], 2)
    flag = "prompt_lookup_num_tokens" if assistant is None else "assistant"
    task = read_task(repo, revision)
    task.check_generates()
    check_greedy(flag, merge_options(task, options), num_at_once=num_at_once)


def read_task(repo: str, revision: str | None) -> Task:
    """Return the task of a result; two small files are downloaded, without progress bars."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined, unused-ignore]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    from pipelines.hub.result_folder import result_folder

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        folder = result_folder(repo, revision, files=("recipe.json", "task.json"))
    finally:
        if not silent:
            enable_progress_bars()
    return Recipe.from_file(folder / "recipe.json").task


def column_names(text: str) -> list[str]:
    """Return the names in a list with commas. Stop for an empty name and for one given twice."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        stop([f"--keep: {text!r} is not a list of different columns, as id,text."], 2)
    return names


def at_least_one(flag: str, value: int) -> None:
    """Stop, naming the flag, for a number below 1."""
    if value < 1:
        stop([f"--{flag}: {value} is out of range; it must be at least 1."], 2)
