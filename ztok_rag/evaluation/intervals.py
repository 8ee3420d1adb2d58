"""Percentile bootstrap intervals of a mean, a median, a ratio of means, or any other statistic."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes resampled data `[resamples, n, ...]`; returns one value per resample, `[resamples]`."""

_RESAMPLES = 2000
_LEVEL = 0.95
_MOST_DRAWN = 2**22
"""Most rows that are drawn at once; limits memory, not the result."""


def mean(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each resample, given `[resamples, n]`."""
    return np.asarray(drawn.mean(axis=1))


def median(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each resample, given `[resamples, n]`."""
    return np.asarray(np.median(drawn, axis=1))


def ratio(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ratio of two means, given pairs `[resamples, n, 2]` of dividend and divisor.

    It is NaN where the mean divisor is 0.
    """
    dividends, divisors = drawn[..., 0].mean(axis=1), drawn[..., 1].mean(axis=1)
    undefined = np.full_like(dividends, np.nan)
    return np.asarray(np.divide(dividends, divisors, out=undefined, where=divisors != 0))


def bootstrap_ci(
    *groups: ArrayLike, seed: int = 0, statistic: Statistic = mean
) -> tuple[float, float]:
    """95% percentile bootstrap interval of a statistic, in the statistic's own unit.

    Rows are drawn with replacement. With several groups, rows are drawn within each group
    (stratified), and the interval is that of the mean of the groups' statistics. Resamples whose
    statistic is NaN are left out.

    Args:
        groups: each `[n]`, or `[n, columns]` where the values of a row belong together.
        seed: of the draws.
        statistic: `mean`, `median`, `ratio`, or another.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(_RESAMPLES)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        rows = generator.integers(0, len(values), size=(_RESAMPLES, len(values)))
        blocks = np.array_split(rows, math.ceil(rows.size / _MOST_DRAWN))
        total += np.concatenate([statistic(values[block]) for block in blocks]) / len(groups)
    low, high = np.nanquantile(total, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
