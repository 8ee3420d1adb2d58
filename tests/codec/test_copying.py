"""Copying: what draws an answer to the tokens that Z-tokens hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor, ZReader, ZtokError
from ztok_rag.codec.copying import CopyCosts, CopyFromCodes, CopySource

END = 2
IDS = [np.array([5, 6, 7, 8]), np.array([9, 6, 3])]
LIKELY = [np.array([0.1, 0.2, 0.1, 0.0]), np.array([0.05, 0.4, 0.15])]


def costs(source: CopySource, written: list[int]) -> list[float]:
    """What each of 12 tokens costs after those written."""
    copying = CopyFromCodes([source], END)
    return [-c for c in copying(torch.tensor([written], dtype=torch.long), torch.zeros(1, 12))[0]]


def test_copying_goes_on_from_what_was_written() -> None:
    source = CopySource(IDS)
    assert [source.ids[place] for place in source.following([6])] == [7, 3]
    assert [source.ids[place] for place in source.following([5, 6])] == [7]
    assert source.following([8]) == []
    first = costs(source, [])
    assert first[5] == first[END] == 0 and first[1] == CopyCosts().first
    then = costs(source, [5, 6])
    assert then[7] == then[END] == 0
    assert (then[3], then[1]) == (CopyCosts().after, CopyCosts().other)
    assert costs(source, [1]) == [0] * 12


def test_likely_places_draw_more() -> None:
    source, nats = CopySource(IDS, LIKELY), CopyCosts().place
    first = costs(source, [])
    assert first[6] == 0  # 0.6 at both its places
    assert first[5] == pytest.approx(nats * math.log(0.6 / 0.1), abs=1e-5)
    assert first[8] == first[1] == CopyCosts().first  # here, but surely no part of the answer
    then = costs(source, [6])
    assert then[3] == 0
    assert then[7] == pytest.approx(nats * math.log(0.4 / 0.2), abs=1e-5)


def test_an_end_costs_less_where_the_answer_is_over() -> None:
    source = CopySource(IDS, LIKELY)
    over, amid = costs(source, [5, 6, 7])[END], costs(source, [5])[END]
    assert over == pytest.approx(0, abs=1e-5)
    assert amid == pytest.approx(-CopyCosts().end * math.log(0.01), abs=1e-5)


def test_a_pointer_names_where_the_answer_begins() -> None:
    shares = [np.array([0.5, 0.1, 0.1, 0.0]), np.array([0.3, 0.0, 0.0])]
    for likely, best in ((None, 5), (LIKELY, 5), ([own[::-1] for own in LIKELY], 9)):
        source = CopySource(IDS, likely)
        then = costs(source, [6])
        source.point(shares)
        first = costs(source, [])
        assert min(range(3, 10), key=first.__getitem__) == best
        assert first[3] == CopyCosts().first
        assert costs(source, [6]) == then


def test_a_text_is_copied_for_nothing() -> None:
    source = CopySource(IDS, LIKELY, texts=[[11, 5, 10]])
    first, alone = costs(source, []), costs(CopySource(IDS, LIKELY), [])
    assert first[11] == first[5] == first[10] == 0 < alone[5]
    assert first[6:10] == alone[6:10]
    then = costs(source, [5])
    assert then[10] == then[6] == then[END] == 0
    assert then[8] == CopyCosts().after
    own, of_codes = costs(source, [6]), costs(CopySource(IDS, LIKELY), [6])
    assert own[:10] == of_codes[:10] and own[11] == CopyCosts().after


def test_costs_of_nothing_leave_likely_places_alone() -> None:
    copying = CopyFromCodes([CopySource(IDS, LIKELY)], END, CopyCosts(place=0.0, end=0.0))
    plain = CopyFromCodes([CopySource(IDS)], END)
    for written in ([], [6], [5, 6], [1]):
        ids, scores = torch.tensor([written], dtype=torch.long), torch.zeros(1, 12)
        assert torch.equal(copying(ids, scores), plain(ids, scores))


def test_what_is_copied_stands_in_the_codes(compressor: ZCompressor, reader: ZReader) -> None:
    text = "The winner of the Grobnik cup was Oyvhild Tarkwarzny from Ulmskoog."
    (z,) = compressor.compress([text], 6)
    prompt = [z, "\n\nQuestion: Who won the Grobnik cup?\nAnswer:"]
    (answer,) = reader.generate([prompt], max_new_tokens=16)
    written = compressor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert set(written) <= set(z.ids.tolist())


def test_an_answer_is_drawn_to_what_is_likely(compressor: ZCompressor, reader: ZReader) -> None:
    zs = compressor.compress([BAKERY, PASSAGE], 4)
    prompt = [*zs, "\n\nQuestion: Which person is named?\nAnswer:"]
    spans = compressor.tokenize([PASSAGE])[0].spans
    for name in ("Marta Lindqvist", "Tomas Berg"):
        start = PASSAGE.index(name)
        is_name = (spans[:, 1] > start) & (spans[:, 0] < start + len(name))
        likely = [np.full(len(zs[0].ids), 1e-6), np.where(is_name, 1.0, 1e-6)]
        answers = [
            reader.generate([prompt], likely=[likely], max_new_tokens=8, speculate=speculate)[0]
            for speculate in (False, True)
        ]
        assert answers[0] == answers[1]
        assert answers[0].split()[0] == name.split()[0]
        assert "".join(reader.stream(prompt, likely=likely, max_new_tokens=8)) == answers[0]
    with pytest.raises(ZtokError, match="each that each sequence"):
        reader.generate([prompt], likely=[likely[:1]])


def test_an_answer_may_copy_a_long_text_that_is_asked_about(
    compressor: ZCompressor, reader: ZReader
) -> None:
    (z,) = compressor.compress([BAKERY], rate=4)
    question = "\n\nQuestion: Who wrote it?\nAnswer:"

    def copied(text: str, *, is_asked: bool = True) -> list[int]:
        likely = [np.ones(len(z.ids))] if is_asked else None
        processors: Any = reader.begin([z, text], likely=likely).processor
        (copying,) = (p for p in processors if isinstance(p, CopyFromCodes))
        (source,) = copying.sources
        assert source is not None
        return source.ids

    text = "\n\n" + PASSAGE * 2
    told = text + question
    ids = reader.tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
    assert copied(told) == [*copied(question), *ids, -1]
    chat = "\n\nQuestion: When?\nAnswer: " + PASSAGE * 2 + question
    assert copied(chat) == copied(question)
    assert copied(told, is_asked=False) == copied(question)  # as of a task without a question
