"""Bootstrap intervals."""

from __future__ import annotations

from ztok_rag.evaluation import bootstrap_ci
from ztok_rag.evaluation.intervals import median, ratio


def test_intervals() -> None:
    scores = [0.0, 100.0] * 100
    low, high = bootstrap_ci(scores, seed=3)
    assert (low, high) == bootstrap_ci(scores, seed=3)
    assert 40 < low < 50 < high < 60
    assert bootstrap_ci([7.0]) == (7, 7)
    assert bootstrap_ci([0.0] * 5, [10.0] * 3) == (5, 5)


def test_ratio_interval_draws_pairs() -> None:
    below = [1.0, 2.0, 3.0, 50.0]
    halves = [(b / 2, b) for b in below]
    assert bootstrap_ci(halves, statistic=ratio) == (0.5, 0.5)
    assert bootstrap_ci([(1.0, 1.0), (0.0, 0.0)], statistic=ratio) == (1, 1)


def test_an_interval_of_a_median_is_of_the_values() -> None:
    assert bootstrap_ci([3.0, 3.0, 3.0, 100.0], statistic=median) == (3, 100)
