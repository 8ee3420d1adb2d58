"""Bootstrap intervals of means and of ratios of means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_ci(
    scores: Sequence[float], seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, in the scores' own unit."""
    return stratified_ci([scores], seed, samples=samples, level=level)


def stratified_ci(
    groups: Sequence[Sequence[float]], seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """As `bootstrap_ci`, of the mean of the groups' means, drawn within each group."""
    generator = np.random.default_rng(seed)
    means = np.zeros(samples)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        drawn = generator.integers(0, len(values), size=(samples, len(values)))
        means += values[drawn].mean(axis=1) / len(groups)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio_ci(
    above: Sequence[float],
    below: Sequence[float],
    seed: int = 0,
    *,
    samples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean(above) / mean(below)`, the pairs drawn together.

    Draws in which the divisor is 0 are left out.

    Args:
        above: at least one number; as many as `below`.
        below: numbers of at least 0, not all of them 0.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(below), size=(samples, len(below)))
    dividends = np.asarray(above, dtype=np.float64)[drawn].mean(axis=1)
    divisors = np.asarray(below, dtype=np.float64)[drawn].mean(axis=1)
    ratios = dividends[divisors > 0] / divisors[divisors > 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
