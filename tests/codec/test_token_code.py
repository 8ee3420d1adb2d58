"""The entropy code of token ids gives back what it was given, in fewer bits where it was fitted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import SequenceError

SMALL = TokenCode.fit([[1, 2, 3, 1, 2, 3, 7] * 20], [[0, 1, 1]], 64, classes=4)


@given(
    ids=st.lists(st.integers(0, 63), min_size=1, max_size=80),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100, deadline=None)
def test_ids_and_levels_come_back(ids: list[int], seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 7, len(ids)).astype(np.uint8)
    data = SMALL.encode(np.array(ids), levels)
    found, back = SMALL.decode(data, len(ids), with_levels=True)
    assert found.tolist() == ids
    assert back.tolist() == levels.tolist()


@pytest.mark.parametrize("vocabulary", [150_000, 262_144])
def test_large_vocabularies_lose_nothing(vocabulary: int) -> None:
    ids = np.array([0, vocabulary - 1, vocabulary // 2, 70_000])
    code = TokenCode.uniform(vocabulary)
    assert code.decode(code.encode(ids), 4)[0].tolist() == ids.tolist()


def test_text_like_the_training_text_takes_fewer_bytes() -> None:
    usual = np.array([1, 2, 3, 1, 2, 3] * 30)
    unusual = np.arange(180) % 50 + 10
    assert len(SMALL.encode(usual)) < len(SMALL.encode(unusual)) / 2


def test_truncated_bytes_are_refused() -> None:
    data = SMALL.encode(np.arange(40))
    with pytest.raises(SequenceError, match="truncated"):
        SMALL.decode(data[:-3], 40)
