"""Allocation: exact counts, full Z-tokens only where wanted, nothing lost that can be held."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztok_rag.codec.allocation import allocate, choose_held, count_z_tokens

SLOTS = 16


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=300),
    share=st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_exactly_as_many_spans_as_asked_for_and_none_too_long(
    weights: list[float], share: float
) -> None:
    n = len(weights)
    least = -(-n // SLOTS)
    count = round(least + share * (n - least))
    spans = allocate(np.array(weights), count, SLOTS)
    assert spans[0] == 0
    assert set(np.diff(spans).tolist()) <= {0, 1}
    assert spans[-1] + 1 == count
    assert np.bincount(spans).max() <= SLOTS


def test_light_tokens_share_a_span_and_heavy_ones_have_their_own() -> None:
    weights = np.array([10.0, 10.0, 10.0, *[0.1] * 12])
    spans = allocate(weights, 5, SLOTS)
    sizes = np.bincount(spans)
    assert sizes[:3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("rate", [1, 1.5, 2, 3, 4, 6, 8, 12])
def test_the_real_rate_is_the_one_asked_for(rate: float) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 400, 50)
    made = sum(count_z_tokens(int(n), rate, SLOTS) for n in sizes)
    assert sizes.sum() / made == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize("rate", [1, 2, 5, 11, 16])
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 97, 1000])
def test_up_to_a_rate_of_the_slots_everything_can_be_held(tokens: int, rate: float) -> None:
    assert count_z_tokens(tokens, rate, SLOTS) * SLOTS >= tokens


def test_predicted_tokens_are_left_out_first_then_the_lightest() -> None:
    weights = np.array([1.0, 9.0, 2.0, 8.0])
    predicted = np.array([False, True, False, False])
    assert choose_held(weights, predicted, 3).tolist() == [0, 2, 3]
    assert choose_held(weights, predicted, 2).tolist() == [2, 3]
