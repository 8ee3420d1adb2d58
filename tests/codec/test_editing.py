"""Sequences are joined, sliced and compared without being decoded."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor, ZReader, ZtokError, find_duplicates
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import ZSequence, text_digest
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import SequenceError

CODE = TokenCode.uniform(300)
SLOTS = 16

ids = st.lists(st.integers(0, 255), min_size=1, max_size=60)
rates = st.sampled_from([1.0, 2.0, 3.5, 8.0, 16.0, 24.0])


def sequence_of(tokens: list[int], rate: float, seed: int = 0) -> ZSequence:
    """Each token is the character of its id."""
    levels = np.random.default_rng(seed).integers(0, 7, len(tokens)).astype(np.uint8)
    return CompressedText(
        ids=np.array(tokens),
        levels=levels,
        starts=np.arange(len(tokens)),
        characters=len(tokens),
        fingerprint="0123456789abcdef",
        digest=text_digest("".join(map(chr, tokens))),
        code=CODE,
    ).at(rate, SLOTS)


@given(texts=st.lists(st.tuples(ids, rates), min_size=2, max_size=4))
@settings(max_examples=100, deadline=None)
def test_slices_of_a_concatenation_are_its_parts(texts: list[tuple[list[int], float]]) -> None:
    parts = [sequence_of(*text) for text in texts]
    whole = ZSequence.concat(parts)
    assert ZSequence.from_bytes(whole.to_bytes(), CODE) == whole
    assert whole.digest == b""
    assert whole.holds_all == all(z.holds_all for z in parts)
    assert whole.ids.tolist() == [i for z in parts for i in z.ids.tolist()]
    if whole.holds_all:
        assert whole.ids.tolist() == [i for tokens, _ in texts for i in tokens]
    for unit in ("characters", "tokens"):
        edges = np.cumsum([0, *(len(tokens) for tokens, _ in texts)]).tolist()
        for z, (start, end) in zip(parts, pairwise(edges), strict=True):
            part = whole.slice(start, end, unit=unit)
            assert part == dataclasses.replace(z, digest=b"")
            assert part.places.tolist() == z.places.tolist()
            assert part.spans.tolist() == z.spans.tolist()


@given(tokens=ids, rate=rates, cut=st.tuples(st.integers(0, 60), st.integers(0, 60)))
@settings(max_examples=100, deadline=None)
def test_a_slice_has_whole_z_tokens_and_right_spans(
    tokens: list[int], rate: float, cut: tuple[int, int]
) -> None:
    z = sequence_of(tokens, rate)
    start, end = cut
    if start >= min(end, len(tokens)):
        with pytest.raises(SequenceError, match="no Z-token"):
            z.slice(start, end)
        return
    first, last = z.covering(start, end)
    part = z.slice(start, end)
    begins, ends = z.spans[first, 0], z.spans[last - 1, 1]
    assert begins <= start and ends >= min(end, len(tokens))
    assert z.spans[first, 1] > start and z.spans[last - 1, 0] < end
    assert part.codes.tolist() == z.codes[first:last].tolist()
    assert part.spans.tolist() == (z.spans[first:last] - begins).tolist()
    assert part.source_tokens == ends - begins
    if z.holds_all:
        assert part.ids.tolist() == tokens[begins:ends]
    assert part.digest == (z.digest if len(part) == len(z) else b"")
    assert ZSequence.from_bytes(part.to_bytes(), CODE) == part


def test_what_cannot_be_concatenated() -> None:
    z = sequence_of([1, 2, 3], 1)
    with pytest.raises(SequenceError, match="nothing"):
        ZSequence.concat([])
    with pytest.raises(SequenceError, match="several checkpoints"):
        z + dataclasses.replace(z, fingerprint="f" * 16)
    with pytest.raises(TypeError):
        z + "text"  # type: ignore[operator]
    assert ZSequence.concat([z]) is z


def every_repeat(rows: list[list[int]], at_least: int) -> set[tuple[tuple[int, int, int], ...]]:
    """Maximal repeats by looking at all runs."""
    runs: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for number, row in enumerate(rows):
        for start in range(len(row)):
            for end in range(start + at_least, len(row) + 1):
                runs.setdefault(tuple(row[start:end]), []).append((number, start, end))
    found = set()
    for places in runs.values():
        before = {rows[n][a - 1] if a else (n, a) for n, a, _ in places}
        after = {rows[n][b] if b < len(rows[n]) else (n, b) for n, _, b in places}
        if len(places) > 1 and len(before) > 1 and len(after) > 1:
            found.add(tuple(places))
    return found


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=20), min_size=1, max_size=3),
    rate=st.sampled_from([1.0, 3.0]),
    at_least=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_duplicates_are_equal_maximal_and_all_there_are(
    rows: list[list[int]], rate: float, at_least: int
) -> None:
    zs = [sequence_of(row, rate) for row in rows]
    found = find_duplicates(zs, at_least)
    assert {tuple((p.sequence, p.start, p.end) for p in d.places) for d in found} == every_repeat(
        rows, at_least
    )
    assert [d.tokens for d in found] == sorted((d.tokens for d in found), reverse=True)
    for duplicate in found:
        texts = {tuple(zs[p.sequence].ids[p.start : p.end].tolist()) for p in duplicate.places}
        assert len(texts) == 1
        for place in duplicate.places:
            assert place.span[0] <= place.start and place.span[1] >= place.end
            assert place.span[0] > place.start - SLOTS and place.span[1] < place.end + SLOTS


def test_runs_do_not_reach_over_what_was_left_out() -> None:
    z = sequence_of(list(range(200)), 24)
    gaps = int((np.diff(z.places) > 1).sum())
    assert gaps
    runs = find_duplicates([z, z], 1)
    assert len(runs) == gaps + 1
    for run in runs:
        place = run.places[0]
        assert (np.diff(z.places[place.start : place.end]) == 1).all()


def test_duplicates_of_nothing_and_of_several_checkpoints() -> None:
    z = sequence_of([1, 2, 3], 1)
    assert find_duplicates([]) == []
    with pytest.raises(ZtokError, match="at least one token"):
        find_duplicates([z], 0)
    with pytest.raises(ZtokError, match="several checkpoints"):
        find_duplicates([z, dataclasses.replace(z, fingerprint="f" * 16)])


def test_a_concatenation_is_text_and_is_read(compressor: ZCompressor, reader: ZReader) -> None:
    a, b = compressor.compress([PASSAGE + " ", BAKERY], 4)
    both = a + b
    assert compressor.decompress([both]) == [PASSAGE + " " + BAKERY]
    question = "\n\nQuestion: Who was the last keeper?\nAnswer:"
    assert "Tomas Berg" in reader.generate([[both, question]], max_new_tokens=12)[0]
    start = PASSAGE.index("The last keeper")
    (text,) = compressor.decompress([both.slice(start, len(PASSAGE))])
    assert PASSAGE[start:] in text
    (shared,) = find_duplicates([both, b])
    assert shared.tokens == b.source_tokens
    assert shared.places[1].span == (0, len(BAKERY))
