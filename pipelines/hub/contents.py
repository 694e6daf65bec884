"""The files of the repository that a result is published to."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from pipelines.errors import Problem, RecipeError
from pipelines.hub.card import model_card
from pipelines.log import TOKEN
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch
from pipelines.results.files import FILES, NOT_LISTED
from pipelines.results.names import public_name

TEXT_SUFFIXES = (".json", ".md", ".txt", ".jinja")
VOCABULARIES = ("vocab.json", "merges.txt")  # their entries are tokens, not paths
Contents = dict[str, Path | bytes]
"""Files of a repository by their names: a file on disk, or the bytes that publishing writes."""


def make_portable(recipe: Recipe) -> Recipe:
    """Return the recipe without this machine's paths, except those below the current folder."""
    task = recipe.task
    others = task.dataset.mixed_with or ()
    mixed = tuple(replace(each, path=public_name(each.path)) for each in others)
    source = replace(task.dataset, path=public_name(task.dataset.path), mixed_with=mixed or None)
    model: Model | Scratch = recipe.model
    if isinstance(model, Model):
        tokenizer = None if model.tokenizer is None else public_name(model.tokenizer)
        model = replace(model, name_or_path=public_name(model.name_or_path), tokenizer=tokenizer)
    elif isinstance(model.tokenizer, Model):
        name = public_name(model.tokenizer.name_or_path)
        model = replace(model, tokenizer=replace(model.tokenizer, name_or_path=name))
    teacher = recipe.distillation
    if teacher is not None:
        teacher = replace(teacher, teacher=public_name(teacher.teacher))
    return replace(
        recipe,
        task=replace(task, dataset=source),
        model=model,
        distillation=teacher,
        output_dir=None,
        push_to=None,
        public=False,
    )


def contents_of(
    folder: Path,
    recipe: Recipe,
    sidecar: dict[str, Any],
    repo: str,
    *,
    base_license: str | None,
) -> Contents:
    """Return the files that the repository will have; nothing is written into the result."""
    contents: Contents = {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in FILES)
    }
    contents["recipe.json"] = recipe.to_json().encode()
    contents["README.md"] = model_card(recipe, sidecar, repo, base_license=base_license).encode()
    if "adapter_config.json" in contents and isinstance(recipe.model, Model):
        config = json.loads(read_content(contents["adapter_config.json"]))
        named = {
            "base_model_name_or_path": recipe.model.name_or_path,
            "revision": recipe.model.revision,
        }
        if config | named != config:
            contents["adapter_config.json"] = json_bytes(config | named)
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if isinstance(content, bytes)
        else sidecar["files"][name]
        for name, content in contents.items()
        if name not in NOT_LISTED
    }
    contents["task.json"] = json_bytes(sidecar | {"files": listed})
    return contents


def json_bytes(value: Any) -> bytes:
    """Return JSON in the layout of a result's files."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def content_size(content: Path | bytes) -> int:
    """Return the number of bytes of a file that is published."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def read_content(content: Path | bytes) -> bytes:
    """Return the content of a file that is published."""
    return content if isinstance(content, bytes) else content.read_bytes()


def check_contents(contents: Contents) -> None:
    """Raise RecipeError for a token, or a path of this machine, in the files to upload."""
    secrets = [token.encode() for token in (get_token(), os.environ.get("HF_TOKEN")) if token]
    folders = (Path.home(), Path.home().resolve(), Path.cwd())
    paths = dict.fromkeys(str(path) for path in folders if len(path.parts) > 1)
    problems = []
    for name, content in sorted(contents.items()):
        if Path(name).suffix not in TEXT_SUFFIXES:
            continue
        data = read_content(content)
        if TOKEN.search(data.decode(errors="replace")) or any(secret in data for secret in secrets):
            problems.append(Problem(name, "has a token of the Hub."))
        texts = list(searchable_texts(name, data))
        for path in paths:
            if any(contains_path(text, path) for text in texts):
                problems.append(Problem(name, f"has a path of this machine, {path}."))
    if problems:
        raise RecipeError(problems)


def searchable_texts(name: str, data: bytes) -> Iterator[str]:
    """Yield the texts of a file to search for paths: of JSON, its strings, without vocabularies."""
    if name in VOCABULARIES:
        return
    text = data.decode(errors="replace")
    if not name.endswith(".json"):
        yield text
        return
    try:
        value = json.loads(text)
    except ValueError:
        yield text
        return
    if name == "tokenizer.json" and isinstance(value, dict):
        value = {key: part for key, part in value.items() if key != "model"}  # the vocabulary
    yield from strings_of(value)


def strings_of(value: Any) -> Iterator[str]:
    """Yield every string among the values of a JSON document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_of(part)


def contains_path(text: str, path: str) -> bool:
    """Tell whether a text has `path` or a path below it, and not only as a part of a name."""
    begin, end = r"(?:(?<![\w.~/-])|(?<=://))", r"(?![\w-])(?!\.\w)"
    return re.search(begin + re.escape(path) + end, text) is not None
