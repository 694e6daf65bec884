"""`evaluate.Metric` modules that work with no network, each loadable by its path."""

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
    """Return the `evaluate.Metric` of that name.

    It holds its rows in memory, so that it needs no cache folder and no lock file, and two
    processes share nothing. `evaluate.load` of its path copies the module into HF_HOME and writes
    there. Raise ValueError, with the nearest name, for one that does not exist.
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
    with TemporaryDirectory() as folder:  # made by `evaluate`, and empty where rows are in memory
        return kind(config_name=config_name, keep_in_memory=True, cache_dir=folder)
