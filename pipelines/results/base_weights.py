"""Shape and hash that identify the base of an adapter, and hashes of the folders of a recipe."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from pipelines.data.local_files import is_path
from pipelines.models.download import weight_files
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.results.files import digest, read_manifest, sha256

SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size")
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "added_tokens.json", "*.model", "*.jinja")


def sha256_of_folders(recipe: Recipe) -> dict[str, str | None]:
    """Return a hash of the model, the tokenizer and the teacher that a recipe names by folders.

    None is one of the Hub, which its commit identifies, or one that the recipe does not have.
    """
    model, distillation = recipe.model, recipe.distillation
    named = model if isinstance(model, Model) else model.tokenizer
    teacher = None if distillation is None else Path(distillation.teacher)
    tokenizer = Path(named.tokenizer_source[0]) if isinstance(named, Model) else None
    weights = Path(model.name_or_path) if isinstance(model, Model) else None
    return {
        "model": weights_sha256(weights) if weights and weights.is_dir() else None,
        "tokenizer": tokenizer_sha256(tokenizer) if tokenizer and tokenizer.is_dir() else None,
        "teacher": digest(read_manifest(teacher)) if teacher and teacher.is_dir() else None,
    }


def tokenizer_sha256(folder: Path) -> str:
    """Return the hash of the files of a folder that a tokenizer is loaded from."""
    names = [file.name for file in folder.iterdir() if file.is_file()]
    listed = [name for name in names if any(fnmatch(name, each) for each in TOKENIZER_FILES)]
    return combined_sha256({name: sha256(folder / name) for name in listed})


def checkpoint_folder(model: Model) -> Path:
    """Return the folder that holds a checkpoint's files: its own, or that of the cache."""
    name = model.name_or_path
    cached = None if is_path(name) else _cached_file(name, "config.json", model.revision)
    return Path(name) if cached is None else cached.parent


def _cached_file(name: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a repository in the cache, or None."""
    path = try_to_load_from_cache(name, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def weights_sha256(folder: Path) -> str | None:
    """Return the hash of a checkpoint's weights, by `combined_sha256`; None if they are gone.

    A result that is trained is not lost because its base is gone.
    """
    try:
        names = weight_files(file.name for file in folder.iterdir())
        hashes = {name: sha256(folder / name) for name in names}
    except OSError:
        return None
    return combined_sha256(hashes) if hashes else None


def combined_sha256(hashes: dict[str, str]) -> str:
    """Return the hash of files, such as a checkpoint's, from theirs: of a single file, its own."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
