"""Sequences within sequences: one compression read at every rate."""

import itertools
import math

import numpy as np
import pytest
from conftest import BAKERY, LIGHTHOUSE

from ztok_rag import SequenceError, ZCompressor
from ztok_rag.codec.nested import FINEST, RATES, NestedSequence
from ztok_rag.codec.segment import outlast

LONG = " ".join([LIGHTHOUSE, BAKERY] * 5)


@pytest.fixture(scope="module")
def nested(compressor: ZCompressor) -> NestedSequence:
    (made,) = compressor.compress_nested([LONG])
    return made


def test_finest_is_what_compress_makes(compressor: ZCompressor, nested: NestedSequence) -> None:
    assert nested.finest == nested.at(FINEST) == compressor.compress([LONG], FINEST)[0]


@pytest.mark.parametrize("rate", [2, 3, 4, 5, 8, 20, 32])
def test_about_as_many_z_tokens_as_compress_makes(
    rate: float, compressor: ZCompressor, nested: NestedSequence
) -> None:
    nearest = min(RATES, key=lambda known: abs(math.log(known / rate)))
    assert nearest == pytest.approx(rate, rel=0.05)
    (own,) = compressor.compress([LONG], nearest)
    z = nested.at(rate)
    assert len(z) == pytest.approx(len(own), rel=0.03, abs=1)
    assert len(z.windows) == len(own.windows) > 1
    assert z.source_tokens == own.source_tokens


def test_coarser_is_a_part_of_finer(nested: NestedSequence) -> None:
    counts = [int(nested.kept(rate).sum()) for rate in RATES]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 10 * counts[-1]
    for finer, coarser in itertools.pairwise(RATES):
        assert not (nested.kept(coarser) & ~nested.kept(finer)).any()


def test_z_tokens_of_a_rate_cover_the_text(nested: NestedSequence) -> None:
    for rate in (1, 3, 9, 64, 200):
        spans = nested.at(rate).spans
        assert spans[0, 0] == 0 and spans[-1, 1] == len(LONG)
        assert (spans[1:, 0] == spans[:-1, 1]).all()


def test_bytes_come_back(nested: NestedSequence) -> None:
    data = nested.to_bytes()
    assert NestedSequence.from_bytes(data) == nested
    assert len(data) < 5 * nested.finest.source_tokens
    for damaged in (data[:-1], data[:40] + b"?" + data[41:], b"other"):
        with pytest.raises(SequenceError):
            NestedSequence.from_bytes(damaged)


def test_what_carries_most_outlasts() -> None:
    information = np.array([1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 5.0, 1.0])
    assert outlast(information, np.arange(8), [4, 2, 1], 8).tolist() == [1, 0, 3, 1, 0, 0, 2, 0]
    assert outlast(information, np.arange(8), [1], 4).sum() >= 2, "no span is longer than that"
    assert outlast(information, np.arange(8), [], 4).tolist() == [0] * 8
