"""Looking twice: which pieces are read again, and that the budget holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor, ZReader, ZtokError
from ztok_rag.codec.reader import Segment
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.selection.asked import find_question
from ztok_rag.selection.evidence import find_likely
from ztok_rag.selection.look_twice import LookTwice
from ztok_rag.selection.sentences import SentenceScorer

QUESTION = "\n\nQuestion: Who was the last keeper?\nAnswer:"
TEXTS = [BAKERY, PASSAGE, BAKERY[::-1], PASSAGE.upper()]


def z_tokens(segments: list[Segment]) -> list[ZSequence]:
    return [s for s in segments if isinstance(s, ZSequence)]


@pytest.mark.parametrize("rate", [2, 4])
def test_both_looks_have_no_more_positions_than_were_given(
    compressor: ZCompressor, reader: ZReader, rate: float
) -> None:
    zs = compressor.compress(TEXTS, rate)
    first, second = LookTwice().read(reader, [*zs, QUESTION]).looks
    positions = sum(map(len, z_tokens(first))), sum(map(len, z_tokens(second)))
    assert sum(positions) <= sum(map(len, zs)) + 2
    assert min(positions) > len(zs)
    assert first[-1] == second[-1] == QUESTION
    held = [compressor.held_text(z) for z in z_tokens(second)]
    assert any("Tomas Berg" in text or "TOMAS BERG" in text for text in held)


def test_a_first_look_may_leave_tokens_out(compressor: ZCompressor, reader: ZReader) -> None:
    rate = 2.0 * compressor.slots
    zs = compressor.compress(TEXTS, 4)
    first, second = LookTwice(first_rate=rate).read(reader, [*zs, QUESTION]).looks
    assert not all(z.holds_all for z in z_tokens(first))
    assert sum(map(len, [*z_tokens(first), *z_tokens(second)])) <= sum(map(len, zs))


def test_a_share_bounds_both_looks(compressor: ZCompressor, reader: ZReader) -> None:
    zs = compressor.compress(TEXTS, 2)
    held = sum(len(z.places) for z in zs)
    look = LookTwice(share=0.3, first_rate=12)
    first, second = look.read(reader, [*zs, QUESTION]).looks
    assert [z.codes.shape[0] for z in z_tokens(first)] == [len(z.at(12)) for z in zs]
    assert sum(len(z) for own in (first, second) for z in z_tokens(own)) <= 0.3 * held + 2


def test_where_a_first_look_takes_too_much_the_relevance_model_chooses(
    compressor: ZCompressor, reader: ZReader
) -> None:
    for rate, look in (
        (16, LookTwice()), (8, LookTwice()), (4, LookTwice(first_rate=math.inf)),
    ):  # fmt: skip
        zs = compressor.compress(TEXTS, rate)
        (only,) = look.read(reader, [*zs, QUESTION]).looks
        assert sum(map(len, z_tokens(only))) <= sum(map(len, zs)) + 2
        assert not all(z.holds_all for z in z_tokens(only))


def test_sentences_about_the_question_weigh_more(compressor: ZCompressor) -> None:
    texts = ["Its captain drowned near the reef. It sank.", "Rye bread needs sour dough. It rose."]
    asked, tokens = "Which ship's commander died at sea?", compressor.tokenize(texts)
    scorer = SentenceScorer(compressor.tokenizer)
    alone = find_likely(compressor.model, asked, texts, tokens, None)
    together = find_likely(compressor.model, asked, texts, tokens, scorer)
    for found in (alone, together):
        assert [len(own) for own in found] == [len(own) for own in tokens]
        assert sum(float(own.sum()) for own in found) == pytest.approx(1.0, abs=1e-5)
    about = tokens[0].spans[:, 1] <= texts[0].index(".") + 1
    assert together[0][about].sum() > alone[0][about].sum()


def test_half_a_character_in_the_question_is_replaced(
    compressor: ZCompressor, reader: ZReader
) -> None:
    zs = compressor.compress(TEXTS, 4)
    asked = QUESTION.replace("last", "last\ud83d")
    with pytest.warns(UserWarning, match="the question"):
        looks = LookTwice().read(reader, [*zs, asked]).looks
    assert len(looks) == 2


def test_pieces_are_parts_of_the_text(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([f"{PASSAGE}\n\n{BAKERY}"], 4)
    (again,) = z_tokens(LookTwice().read(reader, [z, QUESTION]).last)
    ids = z.ids[again.places]
    assert again.ids.tolist() == ids.tolist()
    assert (np.diff(again.places) > 0).all()
    assert again.source_tokens == z.source_tokens
    part = z.slice(40, 400)  # its tokens are not those of its text alone
    (first, second) = LookTwice().read(reader, [part, QUESTION]).looks
    assert first != second


@pytest.mark.parametrize(
    ("texts", "rate", "question"),
    [
        ([PASSAGE[:80]], 4, QUESTION),  # short
        ([PASSAGE], 1, QUESTION),  # raw text
        (TEXTS, 4, "\n\nWrite a summary of the texts.\n\nSummary:"),
        ([], 4, QUESTION),
    ],
)
def test_what_is_read_once(
    compressor: ZCompressor, reader: ZReader, texts: list[str], rate: float, question: str
) -> None:
    segments = [*compressor.compress(texts, rate), question]
    assert LookTwice().read(reader, segments).looks == [segments]


def test_what_the_question_has_chosen_already_is_read_once(
    compressor: ZCompressor, reader: ZReader
) -> None:
    (text,) = compressor.compress_all_rates([f"{PASSAGE}\n\n{BAKERY}"])
    segments: list[Segment] = [text.view(np.arange(100), 2, compressor.slots), QUESTION]
    assert LookTwice().read(reader, segments).looks == [segments]


@pytest.mark.parametrize(
    ("before", "after", "question"),
    [
        ("", QUESTION, "Who was the last keeper?"),
        ("Context:\n", "\n---\nAnswer the query.\nQuery: Name it\nAnswer: ", "Name it"),
        ("The original query is as follows: Who?\nMore context:", "\nRefined Answer: ", "Who?"),
        ("", "\nuser: Where is it?\nThanks.\nassistant: ", "user: Where is it?"),
        ("", "\n塔は何年に建てられましたか\uff1f\n", "塔は何年に建てられましたか\uff1f"),
        ("If you cannot answer the question: say so.", "\nuser: Who?\n", "user: Who?"),
        ("What is this?", "\nQuestion: first\nQuestion: second\n", "second"),
        ("", "\nuser: Who?\nassistant: Ana?\nuser: Why?\nassistant: ", "user: Why?"),
        ("", "\nAna: Are you coming?\nBo: Yes.\nSummary:", None),  # what is said to another
        ("", "\nQ: Which?\nOptions: this, that\nA:", "Q: Which?"),
        ("Text: ", "\n\nSummarize the text.\nSummary:", None),
        ("", "", None),
    ],
)  # fmt: skip
def test_a_prompts_question_is_found(before: str, after: str, question: str | None) -> None:
    assert find_question(before, after) == question


def test_bad_settings() -> None:
    with pytest.raises(ZtokError, match="share"):
        LookTwice(share=0)
    with pytest.raises(ZtokError, match="rate"):
        LookTwice(first_rate=0.5)
    with pytest.raises(ZtokError, match="rate"):
        LookTwice(first_rate=math.nan)
