"""Load a result to predict or to generate with, as fast as its results allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pipelines.hub.load import LoadedResult, load_result
from pipelines.models.adapters import merge_where_exact
from pipelines.recipe.values import Precision


def load_to_infer(
    repo: str | Path,
    revision: str | None = None,
    *,
    base: str | None = None,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
) -> LoadedResult:
    """Load a result as `load_result` does, and merge its adapter where only rounding changes."""
    loaded = load_result(repo, revision, base=base, precision=precision, device=device)
    return replace(loaded, model=merge_where_exact(loaded.model))
