"""Where the answer to a prompt's question may stand among the tokens that its Z-tokens hold."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor
from ztok_rag.codec.reader import Segment
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.codec.told import told_after
from ztok_rag.selection.look_twice import LookTwice
from ztok_rag.selection.reading import Reading, read_once

QUESTION = "\n\nQuestion: Who was the last keeper?\nAnswer:"


def held(reading: Reading) -> list[ZSequence]:
    return [s for s in reading.last if isinstance(s, ZSequence)]


@pytest.mark.parametrize("rate", [2, 4, 16])
def test_likely_tokens_are_those_of_the_answer(compressor: ZCompressor, rate: float) -> None:
    zs = compressor.compress([BAKERY, PASSAGE], rate)
    reading = read_once(compressor.model, [*zs, QUESTION])
    assert reading.looks == [[*zs, QUESTION]]
    assert reading.likely is not None
    assert [len(own) for own in reading.likely] == [len(z.ids) for z in zs]
    assert sum(float(own.sum()) for own in reading.likely) == pytest.approx(1, abs=1e-4)
    best = int(zs[1].ids[reading.likely[1].argmax()])
    assert compressor.tokenizer.decode([best]).strip() in "Tomas Berg"


def test_parts_of_a_text_are_told_alone(compressor: ZCompressor) -> None:
    (text,) = compressor.compress_all_rates([f"{BAKERY}\n\n{PASSAGE}"])
    tokens = np.r_[10:30, 31:40, 60 : len(text)]
    z = text.view(tokens, 2, compressor.slots)
    reading = read_once(compressor.model, [z, QUESTION])
    assert reading.likely is not None and len(reading.likely[0]) == len(tokens)
    best = int(z.ids[reading.likely[0].argmax()])
    assert compressor.tokenizer.decode([best]).strip() in "Tomas Berg"
    part = z.part(4, len(z))
    assert read_once(compressor.model, [part, QUESTION]).likely is not None


def test_both_looks_tell_of_the_tokens_that_are_read(compressor: ZCompressor) -> None:
    zs = compressor.compress([BAKERY, PASSAGE, BAKERY[::-1]], 4)
    reading = LookTwice().read(compressor.reader, [*zs, QUESTION])
    assert len(reading.looks) == 2
    assert reading.likely is not None
    assert [len(own) for own in reading.likely] == [len(z.ids) for z in held(reading)]
    assert reading.z_tokens == sum(len(s) for look in reading.looks for s in look[:-1])


@pytest.mark.parametrize("segments", [[PASSAGE, QUESTION], [QUESTION]])
def test_text_is_not_copied(compressor: ZCompressor, segments: list[Segment]) -> None:
    assert read_once(compressor.model, segments) == Reading([segments])


def test_text_is_told_of_where_it_is_to_be_copied(compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], 1)
    reading = read_once(compressor.model, [z, QUESTION], copies_text=True)
    assert reading.likely is not None
    best = int(z.ids[reading.likely[0].argmax()])
    assert compressor.tokenizer.decode([best]).strip() in "Tomas Berg"
    assert read_once(compressor.model, [QUESTION], copies_text=True).likely is None


@pytest.mark.parametrize("looks", [1, 2])
def test_a_long_text_after_the_z_tokens_is_told_of_too(compressor: ZCompressor, looks: int) -> None:
    zs = compressor.compress([BAKERY, BAKERY[::-1], BAKERY[::-2]], 4)
    instructions = "Be brief. Take the words of the text, and write no more than is asked for. "
    for text, is_likely in ((PASSAGE, True), (instructions * 5, False)):
        segments: list[Segment] = [*zs, f"\n\n{text}{QUESTION}"]
        reading = (
            read_once(compressor.model, segments)
            if looks == 1
            else LookTwice().read(compressor.reader, segments)
        )
        assert len(reading.looks) == looks and reading.likely is not None
        told = told_after(reading.last, compressor.tokenizer)
        assert told is not None and told.text == text.strip()
        *held, own = reading.likely
        assert len(own) == len(told)
        assert (float(own.max()) > max(float(each.max()) for each in held)) == is_likely
        if is_likely:
            (a, b) = told.tokens.spans[own.argmax()]
            assert text[a:b].strip() in "Tomas Berg"


def test_nothing_tells_without_a_question_or_a_relevance_model(compressor: ZCompressor) -> None:
    (packed,), (plain,) = (compressor.compress([PASSAGE], rate) for rate in (4, 1))
    asked: list[list[Segment]] = [
        [packed, "\n\nSummarize the text.\n\nSummary:"],
        [plain, QUESTION],
    ]
    for segments in asked:
        assert read_once(compressor.model, segments).likely is None
    model = compressor.model
    selector, model.selector = model.selector, None
    try:
        assert read_once(model, [packed, QUESTION]).likely is None
    finally:
        model.selector = selector
