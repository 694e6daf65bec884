"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def bootstrap(
    contributions: Any, statistic: Callable[[Any], Any], *, num_resamples: int = 1000
) -> tuple[float, float]:
    """Return the 95 % percentile interval of `statistic` over resampled rows.

    `contributions` is (rows, k); `statistic` maps mean contributions, (resamples, k), to
    one value each. Seeded, so that equal predictions give equal intervals.
    """
    import numpy as np

    contributions = np.asarray(contributions, dtype=np.float64)
    num_rows = len(contributions)
    generator = np.random.default_rng(0)
    means = np.stack(
        [
            np.bincount(generator.integers(0, num_rows, num_rows), minlength=num_rows)
            @ contributions
            / num_rows
            for _ in range(num_resamples)
        ]
    )
    low, high = np.quantile(statistic(means), [0.025, 0.975])
    return float(low), float(high)
