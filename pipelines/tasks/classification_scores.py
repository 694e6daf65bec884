"""Scores of classifiers: of one label a row, of several labels, and of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.errors import NonFiniteError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.base import Score
from pipelines.tasks.thresholds import sigmoid


def score_classes(logits: Any, truth: Any, labels: Sequence[str]) -> Score:
    """Score one class a row by accuracy.

    `logits` is (rows, labels), `truth` the rows' class ids. Balanced accuracy is the mean recall of
    the classes that have rows; macro F1 is the mean over all classes, 0 for one without rows.
    """
    import numpy as np
    from scipy.special import logsumexp
    from scipy.stats import binomtest

    from pipelines import metrics

    guess = logits.argmax(1)
    ids = list(range(len(labels)))
    f1 = metrics.load("f1")
    macro = f1.compute(predictions=guess, references=truth, average="macro", labels=ids)
    f1_per_class = f1.compute(predictions=guess, references=truth, average=None, labels=ids)["f1"]
    confusion = np.asarray(
        metrics.load("confusion_matrix").compute(predictions=guess, references=truth, labels=ids)[
            "confusion_matrix"
        ]
    )
    hits, support = confusion.diagonal(), confusion.sum(1)
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(truth)), truth]
    values = {
        "loss": float(losses.mean()),
        **metrics.load("accuracy").compute(predictions=guess, references=truth),
        "balanced_accuracy": float((hits[support > 0] / support[support > 0]).mean()),
        "macro_f1": macro["f1"],
        **scores_per_class(labels, f1_per_class, hits, confusion.sum(0), support),
        "confusion_matrix": confusion.tolist(),
    }
    interval = binomtest(int(hits.sum()), len(truth)).proportion_ci(method="wilson")
    return Score(values, "accuracy", (interval.low, interval.high), num_rows=len(truth))


def scores_per_class(
    labels: Sequence[str], f1: Any, hits: Any, predicted: Any, support: Any
) -> dict[str, dict[str, Any]]:
    """Return F1, precision, recall and support of each label, by its name.

    `support` is the number of rows that have a label, `predicted` of rows that are predicted to,
    and `hits` of rows that are both. Precision and recall of no rows are 0.
    """
    import numpy as np

    columns = {
        "f1_per_class": f1,
        "precision_per_class": hits / np.maximum(predicted, 1),
        "recall_per_class": hits / np.maximum(support, 1),
        "support_per_class": support,
    }
    return {
        name: dict(zip(labels, np.asarray(values).tolist(), strict=True))
        for name, values in columns.items()
    }


def score_label_sets(
    logits: Any, truth: Any, labels: Sequence[str], thresholds: Sequence[float]
) -> Score:
    """Score several labels a row by micro F1.

    `logits` and the 0/1 targets `truth` are (rows, labels). A label is predicted if its probability
    is above its threshold.
    """
    import numpy as np

    from pipelines import metrics

    loss = np.logaddexp(0, logits) - truth * logits
    guess = (sigmoid(logits) > thresholds).astype(int)
    truth = truth.astype(int)
    f1 = metrics.load("f1", "multilabel")
    values: dict[str, Any] = {
        f"{average}_f1": f1.compute(predictions=guess, references=truth, average=average)["f1"]
        for average in ("micro", "macro")
    }
    f1_per_class = f1.compute(predictions=guess, references=truth, average=None)["f1"]
    hits, predicted, support = (guess & truth).sum(0), guess.sum(0), truth.sum(0)
    values |= scores_per_class(labels, f1_per_class, hits, predicted, support)
    values["loss"] = float(loss.mean())
    rows = np.stack([2 * (guess & truth).sum(1), (guess + truth).sum(1)], axis=1)
    interval = bootstrap(rows, lambda means: means[:, 0] / np.maximum(means[:, 1], 1e-12))
    return Score(values, "micro_f1", interval, num_rows=len(truth))


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
    x, y = predictions - predictions.mean(), truth - truth.mean()
    moments = np.stack([x, y, x * x, y * y, x * y], axis=1)
    interval = bootstrap(moments, correlation_of_moments)
    return Score(values, "pearsonr", interval, num_rows=len(truth))


def correlations(predictions: Any, references: Any) -> dict[str, Any]:
    """Return Pearson's and Spearman's correlation.

    Both are 0.0 if all predictions are equal. scipy returns NaN there, or the correlation of
    float32 rounding errors. A model that predicts one number for all rows explains none of the
    variance of the targets, hence 0; its mean squared error is still defined.
    """
    import numpy as np

    from pipelines import metrics

    names = ("pearsonr", "spearmanr")
    if np.ptp(predictions) <= 1e-6 * np.abs(predictions).max():
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
