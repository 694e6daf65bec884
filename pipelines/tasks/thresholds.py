"""Probabilities above which a label is predicted, where a row may have several."""

from __future__ import annotations

from typing import Any

DEFAULT = 0.5


def sigmoid(logits: Any) -> Any:
    """Return the probability of each label; as `logits`, (rows, labels)."""
    import numpy as np
    from scipy.special import expit

    return expit(np.asarray(logits, dtype=np.float64))


def best_threshold(probability: Any, truth: Any) -> float:
    """Return the threshold by which the predictions of one label have the highest F1.

    A row has the label if its probability is above the threshold. `probability` and the 0/1 values
    `truth` are (rows,), in any order. Candidates are 0.5 and the middle between each two
    neighbouring probabilities; of those with the same F1 the nearest to 0.5 is returned. A label
    that no row has gets 0.5, since its F1 is not defined.
    """
    import numpy as np

    rows = np.sort(probability)
    positives = np.sort(probability[truth > 0])
    if not len(positives):
        return DEFAULT
    upper = np.unique(rows)
    lower = np.concatenate([[0.0], upper[:-1]])
    between = (lower + upper) / 2
    between = np.where(between < upper, between, lower)  # neighbours with no number in between
    candidates = np.concatenate([[DEFAULT], between[between > 0]])
    num_predicted = len(rows) - np.searchsorted(rows, candidates, side="right")
    hits = len(positives) - np.searchsorted(positives, candidates, side="right")
    f1 = 2 * hits / (num_predicted + len(positives))
    best = candidates[f1 == f1.max()]
    return float(best[np.abs(best - DEFAULT).argmin()])
