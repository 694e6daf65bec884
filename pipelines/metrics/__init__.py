"""`evaluate.Metric` modules that need no network; each can be loaded by its path."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).parent
NAMES = (
    "accuracy",
    "confusion_matrix",
    "exact_match",
    "f1",
    "mse",
    "pearsonr",
    "perplexity",
    "rouge",
    "sacrebleu",
    "spearmanr",
    "squad",
    "squad_v2",
)


def load(name: str, config_name: str | None = None) -> Any:
    """Return the `evaluate.Metric` of that name, which holds its rows in memory.

    It needs no cache folder and no lock file, and shares nothing with other processes;
    `evaluate.load` of a path would write to HF_HOME. Raise ValueError, with the nearest name, for
    an unknown metric.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(NAMES)}."
        raise ValueError(f"no metric {name!r}; {hint}")
    module = importlib.import_module(f"{__name__}.{name}")
    (kind,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    )
    with TemporaryDirectory() as folder:  # `evaluate` creates a folder, and here writes nothing
        return kind(config_name=config_name, keep_in_memory=True, cache_dir=folder)
