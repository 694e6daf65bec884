"""How the ranks of a run start: they compare what they were given, then open the process group."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pipelines
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.schema import to_json_value
from pipelines.training.engines import requested_engine
from pipelines.training.identity import comparable
from pipelines.training.ranks import Ranks
from pipelines.training.shared_gpus import own_gpu, refuse_shared_gpus
from pipelines.training.world_size import check_world_size, choose_interface

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "bitsandbytes")
ENGINE = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_", "FSDP_", "PARALLELISM_CONFIG_")
"""Beginnings of the environment variables in which Accelerate hands its config to a rank."""
OF_EVERY_RANK = ("allow_changed", "overwrite", "push_to", "public")
"""Fields, in addition to those that make the run what it is, that decide what a rank does."""


def start_together(ranks: Ranks, recipe: Recipe, **others: Any) -> int:
    """Open the process group of ranks that start the same run, and return its size.

    `others` are further values that must be the same. Raise RankError where the ranks differ, and
    what `check_world_size` raises.
    """
    ranks.compare(launch_notes(recipe) | others)
    if ranks.board is not None:
        own = ranks.board.own.address
        choose_interface(own, [own, *(s.address for s in ranks.board.states.values())])
        refuse_shared_gpus(ranks, own_gpu())
    return check_world_size(recipe.train.ddp_timeout)


def launch_notes(recipe: Recipe) -> dict[str, Any]:
    """Return what every rank of a run must have in common before it reads a row."""
    fields = to_json_value(recipe)
    return {
        "recipe": comparable(recipe) | {name: fields[name] for name in OF_EVERY_RANK},
        "ddp_timeout": recipe.train.ddp_timeout,
        "versions": {
            "python": platform.python_version(),
            "pipelines": hash_of_code(),
            **{name: version(name) for name in LIBRARIES},
        },
        "engine": requested_engine().name,
        "launch": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENGINE)},
    }


@cache
def hash_of_code() -> str:
    """Return the SHA-256 of this package's own source."""
    folder = Path(pipelines.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
