"""Sequences: bytes, parts, rates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import ZSequence, join_sequences, text_digest
from ztok_rag.codec.serialization import deflate, seal, varints
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import SequenceError, ZtokError

CODE = TokenCode.uniform(500)
SLOTS = 16


def compressed(n: int, seed: int = 0) -> CompressedText:
    rng = np.random.default_rng(seed)
    return CompressedText(
        ids=rng.integers(0, 500, n),
        levels=rng.integers(0, 7, n).astype(np.uint8),
        starts=np.arange(n) * 3,
        characters=3 * n,
        fingerprint="0123456789abcdef",
        digest=text_digest("a text"),
        code=CODE,
    )


@given(n=st.integers(1, 200), rate=st.floats(1, 64), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_bytes_give_back_the_sequence(n: int, rate: float, seed: int) -> None:
    z = compressed(n, seed).at(rate, SLOTS)
    back = ZSequence.from_bytes(z.to_bytes(), CODE)
    assert back == z
    assert back.places.tolist() == z.places.tolist()
    assert back.spans.tolist() == z.spans.tolist()
    assert back.digest == z.digest


@given(n=st.integers(1, 200), rate=st.floats(1, 16))
@settings(max_examples=50, deadline=None)
def test_up_to_the_slots_every_token_is_held_in_order(n: int, rate: float) -> None:
    text = compressed(n)
    z = text.at(rate, SLOTS)
    assert z.holds_all
    assert z.ids.tolist() == text.ids.tolist()
    assert z.spans[0, 0] == 0
    assert z.spans[-1, 1] == text.characters
    assert (z.spans[1:, 0] == z.spans[:-1, 1]).all()


def test_at_rate_one_each_token_is_a_z_token() -> None:
    z = compressed(50).at(1, SLOTS)
    assert len(z) == 50
    assert (z.codes[:, 1:] == -1).all()


def test_above_the_slots_predicted_tokens_go_first() -> None:
    text = compressed(200)
    z = text.at(20, SLOTS)
    left_out = np.setdiff1d(np.arange(200), z.places)
    assert len(left_out)
    assert set(np.flatnonzero(text.predicted)) <= set(left_out)


def test_a_sequence_is_read_again_at_another_rate() -> None:
    z = compressed(120).at(2, SLOTS)
    coarse = z.at(8)
    assert len(coarse) == 15
    assert coarse.ids.tolist() == z.ids.tolist()
    assert coarse.rate == pytest.approx(8)
    assert coarse.at(1).ids.tolist() == z.ids.tolist()
    assert coarse.spans[0, 0] == 0
    assert coarse.spans[-1, 1] == 360


def test_parts_join_to_the_whole() -> None:
    z = compressed(200).at(3, SLOTS)
    parts = z.parts(20)
    assert max(map(len, parts)) <= 20
    assert sum(part.source_tokens for part in parts) == 200
    assert np.concatenate([part.ids for part in parts]).tolist() == z.ids.tolist()
    assert all(part.holds_all for part in parts)


def test_views_of_parts_join() -> None:
    text = compressed(100)
    a = text.view(np.arange(0, 30), 2, SLOTS)
    b = text.view(np.arange(60, 100), 8, SLOTS)
    joined = join_sequences([a, b])
    assert joined.source_tokens == 100
    assert not joined.holds_all
    assert joined.ids.tolist() == [*text.ids[:30], *text.ids[60:]]
    assert ZSequence.from_bytes(joined.to_bytes(), CODE) == joined


@given(n=st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_a_compressed_text_comes_back(n: int) -> None:
    text = compressed(n)
    tokens = dataclasses.replace(text, levels=np.zeros(n, np.uint8))
    back = CompressedText.from_bytes(text.to_bytes(), tokens)
    assert back == text
    assert back.levels.tolist() == text.levels.tolist()


def test_a_compressed_text_is_of_one_text_and_checkpoint() -> None:
    text = compressed(40)
    data = text.to_bytes()
    for other in (
        dataclasses.replace(text, digest=text_digest("another")),
        dataclasses.replace(text, fingerprint="f" * 16),
    ):
        with pytest.raises(SequenceError, match="another text"):
            CompressedText.from_bytes(data, other)
    with pytest.raises(SequenceError, match="damaged"):
        CompressedText.from_bytes(data[:-1], text)


def test_altered_bytes_are_refused() -> None:
    data = bytearray(compressed(40).at(4, SLOTS).to_bytes())
    for place in (20, len(data) // 2, len(data) - 1):
        changed = bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]])
        with pytest.raises(SequenceError, match="checksum"):
            ZSequence.from_bytes(changed, CODE)
    with pytest.raises(SequenceError, match="checksum"):
        ZSequence.from_bytes(bytes(data[:-2]), CODE)


@pytest.mark.parametrize(
    ("counts", "packed", "ids"),
    [
        ([4, 1, 16, 4, 1, 0], [4, 0, 9], b"\1\0\0\0\0\0\0\0"),  # ends in a zero word
        ([2**40, 1, 16, 2**40, 1, 0], [4, 0, 9], b"\1\0\0\0"),  # more ids than bytes can give
        ([4, 1, 2**30, 4, 1, 0], [4, 0, 9], b"\1\0\0\0"),  # more slots than memory has
        ([4, 2, 16, 4, 1, 0], [0, 4, 0, 0, 9, 9], b"\1\0\0\0"),  # a Z-token of nothing
        ([3, 1, 16, 4, 1, 0], [4, 0, 9], b"\1\0\0\0"),  # more than the text has
        ([4, 1, 16, 4, 1, 0], [2**80, 0, 9], b"\1\0\0\0"),  # no 64-bit integer
        ([4, 1, 16, 4, 1, 0], [4, 0, 9] + [0] * 10**6, b"\1\0\0\0"),  # unpacks to far more
    ],
)
def test_bytes_with_a_right_checksum_that_no_text_gives(
    counts: list[int], packed: list[int], ids: bytes
) -> None:
    numbers = deflate(varints(packed))
    body = varints([*counts, len(numbers)]) + numbers + ids
    with pytest.raises(SequenceError):
        ZSequence.from_bytes(seal(b"ZT3\n", "00" * 8, body), TokenCode.uniform(64))


def test_an_entry_of_another_length_is_refused() -> None:
    own = compressed(9)
    body = varints([10]) + own.code.encode(own.ids, own.levels)
    with pytest.raises(SequenceError):
        CompressedText.from_bytes(own.to_bytes()[:1] + own._checksum(body) + body, own)


def test_the_old_format_is_named() -> None:
    with pytest.raises(SequenceError, match="another version"):
        ZSequence.from_bytes(b"ZT2\n" + bytes(40), CODE)
    with pytest.raises(SequenceError, match="not a Z-token sequence"):
        ZSequence.from_bytes(b"hello", CODE)


def test_files(tmp_path: Path) -> None:
    z = compressed(40).at(4, SLOTS)
    z.save(tmp_path / "a.zt")
    assert ZSequence.load(tmp_path / "a.zt", CODE) == z
    with pytest.raises(SequenceError, match="cannot read"):
        ZSequence.load(tmp_path / "b.zt", CODE)
    with pytest.raises(ZtokError, match="folder"):
        z.save(tmp_path)
