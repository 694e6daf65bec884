"""Bring a checkpoint of the Hub into the cache."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import is_offline_mode

from pipelines.data.local_files import is_path
from pipelines.errors import Problem, RecipeError
from pipelines.hub_client.client import Hub, reason
from pipelines.hub_client.transport import HubError
from pipelines.recipe.values import Model

SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model")  # of a checkpoint: config and tokenizer
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")


def fetch_checkpoint(model: Model, *, weights: bool = True) -> Path:
    """Return the folder of a checkpoint, with what transformers reads of it in the cache.

    Its config and its tokenizer are downloaded, and its safetensors unless no `weights` are
    needed. Raise HubError when the Hub does not help, and OSError for what is not there.
    """
    name = model.name_or_path
    if Path(name).is_dir() or is_path(name) or is_offline_mode():
        return Path(name)
    files = [*SMALL_FILES, *(WEIGHTS if weights else ())]
    return Hub().download(name, model.revision, files, ignored="*/*")


def weight_files(names: Iterable[str]) -> list[str]:
    """Return the safetensors of a checkpoint that transformers reads, of all its files."""
    return sorted(n for n in names if any(fnmatch(n, pattern) for pattern in WEIGHTS))


def ensure_downloaded(model: Model, *, path: str, weights: bool = True) -> None:
    """Bring a checkpoint of the Hub into the cache, with further attempts when the Hub fails."""
    try:
        fetch_checkpoint(model, weights=weights)
    except (HubError, OSError) as error:
        text = f"{model.name_or_path!r} cannot be downloaded: {reason(error)}"
        raise RecipeError([Problem(path, text)]) from error
