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
from ztok_rag.codec.told import told_after

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


def test_a_pointer_leaves_alone_what_it_knows_nothing_of() -> None:
    source = CopySource([*IDS, np.array([11, 10])], [*LIKELY, np.array([0.4, 0.1])])
    source.point([np.array([0.1, 0.1, 0.1, 0.1]), np.array([0.1, 0.4, 0.1])])
    first = costs(source, [])
    assert first[6] == 0  # 0.4 x 0.4, and where it stands besides
    assert first[11] == pytest.approx(CopyCosts().place * math.log((0.16 + 0.02) / 0.16))
    assert first[11] < first[10] < first[5]


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

    def copied(text: str, *, is_told: bool = True) -> list[int]:
        told = told_after([z, text], reader.tokenizer)
        likely = [np.ones(len(z.ids))]
        if is_told and told is not None:
            likely.append(np.ones(len(told)))
        processors: Any = reader.begin([z, text], likely=likely).processor
        (copying,) = (p for p in processors if isinstance(p, CopyFromCodes))
        (source,) = copying.sources
        assert source is not None
        return source.ids

    text = "\n\n" + PASSAGE * 2
    told = text + question
    ids = reader.tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    assert copied(told) == [*copied(question), *ids, -1]
    chat = "\n\nQuestion: When?\nAnswer: " + PASSAGE * 2 + question
    assert copied(chat) == copied(question)
    assert copied(told, is_told=False) == copied(question)
    with pytest.raises(ZtokError, match="each that each sequence"):
        reader.begin([z, told], likely=[np.ones(len(z.ids)), np.ones(len(ids) - 1)])


@pytest.mark.parametrize("text", ["", "\n\nQuestion: Who wrote it?\nAnswer:", "\n\nToo short."])
def test_a_mere_question_tells_nothing(text: str, compressor: ZCompressor) -> None:
    (z,) = compressor.compress([BAKERY], rate=4)
    assert told_after([z, text], compressor.tokenizer) is None
    assert told_after([PASSAGE * 3, text], compressor.tokenizer) is None
    assert told_after([], compressor.tokenizer) is None
