"""Scores of classifiers: of one label a row, of several labels, and of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.errors import NonFiniteError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.base import Score


def score_classes(logits: Any, truth: Any, labels: Sequence[str]) -> Score:
    """Score one class a row by accuracy.

    `logits` is (rows, labels), `truth` the rows' class ids.
    """
    import numpy as np
    from scipy.special import logsumexp
    from scipy.stats import binomtest

    from pipelines import metrics

    guess = logits.argmax(1)
    ids = list(range(len(labels)))
    f1 = metrics.load("f1")
    per_class = f1.compute(predictions=guess, references=truth, average=None, labels=ids)
    macro = f1.compute(predictions=guess, references=truth, average="macro", labels=ids)
    confusion = metrics.load("confusion_matrix").compute(
        predictions=guess, references=truth, labels=ids
    )["confusion_matrix"]
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(truth)), truth]
    values = {
        "loss": float(losses.mean()),
        **metrics.load("accuracy").compute(predictions=guess, references=truth),
        "macro_f1": macro["f1"],
        "f1_per_class": dict(zip(labels, map(float, per_class["f1"]), strict=True)),
        "confusion_matrix": np.asarray(confusion).tolist(),
    }
    hits = int((guess == truth).sum())
    interval = binomtest(hits, len(truth)).proportion_ci(method="wilson")
    return Score(values, "accuracy", (interval.low, interval.high), num_rows=len(truth))


def score_label_sets(logits: Any, truth: Any) -> Score:
    """Score several labels a row by micro F1.

    `logits` and the 0/1 targets `truth` are (rows, labels).
    """
    import numpy as np

    from pipelines import metrics

    loss = np.logaddexp(0, logits) - truth * logits
    guess, truth = (logits > 0).astype(int), truth.astype(int)
    f1 = metrics.load("f1", "multilabel")
    values = {
        f"{average}_f1": f1.compute(predictions=guess, references=truth, average=average)["f1"]
        for average in ("micro", "macro")
    }
    values["loss"] = float(loss.mean())
    interval = bootstrap(f1_counts(guess, truth), f1_of_counts)
    return Score(values, "micro_f1", interval, num_rows=len(truth))


def f1_counts(guess: Any, truth: Any) -> Any:
    """Return (rows, 2): twice the labels in both, and the labels in either added up.

    `guess` and `truth` are 0/1 integers, (rows, labels).
    """
    import numpy as np

    return np.stack([2 * (guess & truth).sum(1), (guess + truth).sum(1)], axis=1)


def f1_of_counts(means: Any) -> Any:
    """Return micro F1 from mean `f1_counts`; 0 where no row has a label or gets one."""
    import numpy as np

    return means[:, 0] / np.maximum(means[:, 1], 1e-12)


def score_numbers(predictions: Any, truth: Any) -> Score:
    """Score a regression by Pearson's correlation; both are (rows,)."""
    import numpy as np

    from pipelines import metrics

    num_wrong = len(predictions) - int(np.isfinite(predictions).sum())
    if num_wrong:
        raise NonFiniteError(f"{num_wrong:,} of {len(predictions):,} predictions are not finite.")
    values = correlations(predictions, truth)
    values |= metrics.load("mse").compute(predictions=predictions, references=truth)
    values["loss"] = values["mse"]
    interval = bootstrap(moments(predictions, truth), correlation_of_moments)
    return Score(values, "pearsonr", interval, num_rows=len(truth))


def moments(predictions: Any, truth: Any) -> Any:
    """Return (rows, 5): the moments x, y, xx, yy and xy of centred predictions and targets.

    The predictions are 0 where `correlations` takes them for equal.
    """
    import numpy as np

    x, y = predictions - predictions.mean(), truth - truth.mean()
    if all_equal(predictions):
        x = np.zeros_like(x)
    return np.stack([x, y, x * x, y * y, x * y], axis=1)


def all_equal(predictions: Any) -> bool:
    """Tell whether predictions differ by no more than rounding errors of float32."""
    import numpy as np

    return bool(np.ptp(predictions) <= 1e-6 * np.abs(predictions).max())


def correlations(predictions: Any, references: Any) -> dict[str, Any]:
    """Return Pearson's and Spearman's correlation.

    Both are 0.0 if all predictions are equal. scipy returns NaN there, or the correlation of
    float32 rounding errors. A model that predicts one number for all rows explains none of the
    variance of the targets, hence 0; its mean squared error is still defined.
    """
    from pipelines import metrics

    names = ("pearsonr", "spearmanr")
    if all_equal(predictions):
        return dict.fromkeys(names, 0.0)
    values: dict[str, Any] = {}
    for name in names:
        values |= metrics.load(name).compute(predictions=predictions, references=references)
    return values


def correlation_of_moments(means: Any) -> Any:
    """Return Pearson's r from mean moments (x, y, xx, yy, xy).

    It is 0 if x or y does not vary. Rounding leaves a variance of about 1e-16 of the second moment
    where there is none.
    """
    import numpy as np

    x, y, xx, yy, xy = means.T
    variances = (xx - x * x, yy - y * y)
    vary = (variances[0] > 1e-12 * xx) & (variances[1] > 1e-12 * yy)
    r = (xy - x * y) / np.sqrt(np.where(vary, variances[0] * variances[1], 1.0))
    return np.where(vary, np.clip(r, -1, 1), 0.0)
