"""Shape and hash that identify the base of an adapter."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from pipelines.data.local_files import is_path
from pipelines.models.download import weight_files
from pipelines.recipe.values import Model

SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size")


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
    hashes = {}
    try:
        for name in weight_files(file.name for file in folder.iterdir()):
            with (folder / name).open("rb") as content:
                hashes[name] = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None
    return combined_sha256(hashes) if hashes else None


def combined_sha256(hashes: dict[str, str]) -> str:
    """Return the hash of a checkpoint from those of its safetensors: of a single file, its own."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
