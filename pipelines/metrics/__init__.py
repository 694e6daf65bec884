"""`evaluate.Metric` modules that work with no network, each loadable by its path."""

from __future__ import annotations

import difflib
import uuid
from pathlib import Path
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

    Raise ValueError, with the nearest name, for one that does not exist. Each call has an
    experiment id of its own, so that two processes never share a lock file.
    """
    import evaluate

    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(NAMES)}."
        raise ValueError(f"no metric {name!r}; {hint}")
    return evaluate.load(
        str(FOLDER / f"{name}.py"), config_name=config_name, experiment_id=uuid.uuid4().hex
    )
