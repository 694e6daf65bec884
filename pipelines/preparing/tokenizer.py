"""Train a tokenizer once: later runs of the same rows load it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipelines.data.rows import Examples
from pipelines.data.rows_on_disk import RowsOnDisk
from pipelines.models.tokenizers import load_tokenizer
from pipelines.preparing.store import Store
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import to_json_value
from pipelines.recipe.values import Model, Scratch

NUM_BYTES = 10_000_000  # about what a tokenizer takes on disk
CONFIG = "tokenizer_config.json"
WITHOUT_EFFECT = ("is_local", "local_files_only", "model_max_length")
"""Fields of a tokenizer's config that say where it was found, or limit nothing here."""


def prepared_tokenizer(
    recipe: Recipe, train: Examples, texts: Iterable[str], store: Store
) -> PreTrainedTokenizerBase:
    """Load the recipe's tokenizer, or train one on `texts`; of rows on disk, only once."""
    model, task = recipe.model, recipe.task
    load = partial(load_tokenizer, max_length=task.length, chat_template=task.chat_template)
    if not isinstance(model, Scratch) or isinstance(model.tokenizer, Model):
        return load(model, texts)
    if not isinstance(train.rows, RowsOnDisk):
        return load(model, texts)

    def build(folder: Path) -> None:
        with store.progress.phase("encoding", "training a tokenizer"):
            load(model, texts).save_pretrained(folder)

    options = {"tokenizer": to_json_value(model.tokenizer), "template": task.chat_template}
    key = {"rows": train.fingerprint(), **options}
    folder = store.folder("tokenizer", key, build, num_bytes=NUM_BYTES)
    return load(replace(model, tokenizer=Model(name_or_path=str(folder))), ())


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's files, wherever it was found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    config = json.loads(contents.pop(CONFIG))
    kept = {field: value for field, value in config.items() if field not in WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for file, content in contents.items():
        digest.update(file.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()
