"""Bootstrap confidence intervals, of one result and of the difference of two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHUNK = 1 << 20  # row numbers that are drawn at once
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Difference:
    """Difference of two results on the same rows, with its 95 % interval.

    `p_value` is twice the smaller fraction of resamples whose difference is at most 0, or at least
    0. The observed rows count as one more resample, so that it is never 0; it is at most 1.
    """

    value: float
    interval: tuple[float, float]
    p_value: float


def bootstrap(
    contributions: Any, statistic: Callable[[Any], Any], *, num_resamples: int = 1000
) -> tuple[float, float]:
    """Return the 95 % percentile interval of `statistic` over resampled rows.

    `contributions` is (rows, k); `statistic` maps mean contributions, (resamples, k), to
    one value each. Seeded, so that equal predictions give equal intervals.
    """
    import numpy as np

    low, high = np.quantile(statistic(resampled_means(contributions, num_resamples)), LEVELS)
    return float(low), float(high)


def paired_bootstrap(
    first: Any, second: Any, statistic: Callable[[Any], Any], *, num_resamples: int = 10_000
) -> Difference:
    """Return how much higher `statistic` is in `second` than in `first`.

    Both are (rows, k) contributions of the same rows, which are resampled together.
    """
    import numpy as np

    first, second = (np.asarray(each, dtype=np.float64) for each in (first, second))
    means = resampled_means(np.hstack([first, second]), num_resamples)
    width = first.shape[1]
    differences = statistic(means[:, width:]) - statistic(means[:, :width])
    value = statistic(second.mean(0)[None]) - statistic(first.mean(0)[None])
    low, high = np.quantile(differences, LEVELS)
    fewest = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p_value = min(1.0, 2 * (fewest + 1) / (num_resamples + 1))
    return Difference(float(value[0]), (float(low), float(high)), p_value)


def resampled_means(contributions: Any, num_resamples: int) -> Any:
    """Return the means of (rows, k) contributions over rows drawn with replacement.

    They are (resamples, k), and equal in each call.
    """
    import numpy as np

    contributions = np.asarray(contributions, dtype=np.float64)
    num_rows = len(contributions)
    generator = np.random.default_rng(0)
    size = max(1, CHUNK // num_rows)
    chunks = []
    for start in range(0, num_resamples, size):
        num_sets = min(size, num_resamples - start)
        drawn = generator.integers(0, num_rows, (num_sets, num_rows))
        drawn += num_rows * np.arange(num_sets)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num_sets * num_rows)
        chunks.append(counts.reshape(num_sets, num_rows) @ contributions / num_rows)
    return np.concatenate(chunks)
