"""Check the tokenizer of a downloaded result, and load it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from pipelines.models import chat_template as render_template
from pipelines.models.tokenizer_checks import read_tokenizer
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import shortened
from pipelines.results.check_config import JSON_BYTES, check_fetches_nothing
from pipelines.results.sidecar import file_error, read_json

TOKENIZER_BYTES = 1 << 27
TEMPLATE_BYTES = 1 << 18
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")


def check_tokenizer_files(folder: Path, recipe: Recipe, vocab_size: Any) -> None:
    """Raise RecipeError for files that make no tokenizer, or one of another model."""
    config = read_json(folder / "tokenizer_config.json", limit=JSON_BYTES)
    check_fetches_nothing(config, "tokenizer_config.json")
    for name in ("vocab.json", "special_tokens_map.json", "generation_config.json"):
        if (folder / name).is_file():
            check_fetches_nothing(read_json(folder / name, limit=TOKENIZER_BYTES), name)
    file = folder / "tokenizer.json"
    if file.is_file():
        vocab = read_json(file, limit=TOKENIZER_BYTES).get("model")
        vocab = vocab.get("vocab") if isinstance(vocab, dict) else None
        if not isinstance(vocab, dict | list) or not vocab:
            raise file_error(file.name, "model.vocab is missing.")
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(vocab):
            raise file_error(file.name, "model.vocab does not give each token an id of its own.")
        if type(vocab_size) is int and max(ids) >= vocab_size:
            raise file_error(
                file.name, f"has id {max(ids)}, but the model has {vocab_size} tokens."
            )
    elif getattr(
        getattr(transformers, str(config.get("tokenizer_class")), None), "vocab_files_names", True
    ):
        raise file_error("tokenizer.json", f"is missing in {folder}.")
    templates = [config.get("chat_template")]
    if (file := folder / TEMPLATES[0]).is_file():
        if file.stat().st_size > TEMPLATE_BYTES:
            raise file_error(file.name, f"is longer than {TEMPLATE_BYTES:,} bytes.")
        templates.append(file.read_text(encoding="utf-8", errors="replace"))
    for name, template in zip(reversed(TEMPLATES), templates, strict=False):
        if template not in (None, recipe.task.chat_template):
            check_template(name, template)


def check_template(file: str, template: Any) -> None:
    """Raise RecipeError for a chat template that needs too much time or memory to render."""
    if not isinstance(template, str) or len(template) > TEMPLATE_BYTES:
        raise file_error(
            file, f"its chat template is not a text of at most {TEMPLATE_BYTES:,} bytes."
        )
    if reason := template_error(template):
        raise file_error(file, f"its chat template cannot be used: {shortened(reason)}.")


@lru_cache
def template_error(template: str) -> str | None:
    """Return why a template cannot be rendered in bounded time and memory, or None."""
    tokens = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "pad_token")}
    document = json.dumps({"template": template, "tokens": tokens})
    command = [sys.executable, "-P", render_template.__file__]
    limit = 10 * render_template.SECONDS  # wall-clock time, as the machine may be busy
    try:
        done = subprocess.run(
            command, input=document, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"it was not rendered in {limit} seconds"
    if done.returncode < 0:
        return f"it was not rendered in {render_template.SECONDS} seconds"
    return (done.stderr.splitlines() or ["no memory"])[-1] if done.returncode else None


def load_result_tokenizer(folder: Path, sidecar: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checked result. Raise RecipeError for one of another result.

    transformers gives a special token that the vocabulary lacks a new id, for which the model has
    no embedding; that is an error too.
    """
    tokenizer = read_tokenizer(str(folder), None, path="tokenizer.json")
    recorded = {"pad_token_id": sidecar["pad_token_id"], "model_max_length": sidecar["max_length"]}
    for name, value in recorded.items():
        if getattr(tokenizer, name) != value:
            text = f"{name} is {getattr(tokenizer, name)!r}, but task.json has {value}."
            raise file_error("tokenizer_config.json", shortened(text))
    if tokenizer.eos_token_id is None:
        raise file_error("tokenizer_config.json", "eos_token is missing.")
    vocab_size = vocab_size_of(folder, sidecar)
    for name in ("bos_token", "eos_token", "unk_token"):
        token_id = getattr(tokenizer, f"{name}_id")
        if token_id is not None and token_id >= vocab_size:
            text = f"{name} {getattr(tokenizer, name)!r} is not one of the model's {vocab_size:,}."
            raise file_error("tokenizer_config.json", shortened(text))
    return tokenizer


def vocab_size_of(folder: Path, sidecar: dict[str, Any]) -> int:
    """Return the number of embeddings of a checked result; a large number if not in its files."""
    if sidecar["base"]:
        return int(sidecar["base"]["vocab_size"])
    return int(read_json(folder / "config.json", limit=JSON_BYTES).get("vocab_size", 1 << 31))
