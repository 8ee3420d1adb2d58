"""Allocation: the count follows the rate and the content, and spans share information."""

from __future__ import annotations

import numpy as np
import pytest

from ztok_rag.codec.segment import segment, select_anchors, target_count


def information(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 3.0, n)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 512])
@pytest.mark.parametrize("rate", [1.0, 2.0, 4.0, 7.5, 16.0])
def test_count_is_met_and_spans_are_contiguous(n: int, rate: float) -> None:
    info = information(n)
    count = target_count(info, rate, info.mean(), 0.08)
    spans = segment(info, count, 64)
    assert spans[0] == 0 and set(np.diff(spans)) <= {0, 1}
    assert abs(int(spans[-1]) + 1 - count) <= 1
    if rate == 1.0:
        np.testing.assert_array_equal(spans, np.arange(n))


def test_denser_text_gets_more_z_tokens_within_the_elasticity() -> None:
    info = information(400)
    sparse, dense = (target_count(info, 4.0, m, 0.08) for m in (2 * info.mean(), info.mean() / 2))
    assert 92 <= sparse < 100 < dense <= 108


def test_spend_follows_content() -> None:
    info = np.concatenate([np.full(100, 0.5), np.full(100, 5.0)])
    spans = segment(info, 50, 64)
    redundant, surprising = spans[99] - spans[0], spans[199] - spans[100]
    assert surprising > 3 * redundant


def test_no_span_is_longer_than_the_limit() -> None:
    info = np.full(300, 0.01)
    info[150] = 50.0
    assert np.bincount(segment(info, 5, 32)).max() <= 32


def test_anchors_are_the_most_informative_tokens_first_things_first() -> None:
    info = np.array([1.0, 5.0, 2.0, 9.0, 3.0, 4.0, 8.0])
    spans = np.array([0, 0, 0, 0, 1, 1, 2])
    picked = select_anchors(info, spans, 2)
    np.testing.assert_array_equal(picked, [[3, 1], [5, 4], [6, -1]])
