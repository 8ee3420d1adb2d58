"""Query-aware selection."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import regex
from conftest import BAKERY, LIGHTHOUSE
from llama_index.core.base.embeddings.base import BaseEmbedding

from ztok_rag import ZCompressor, ZStore
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.selection.query_aware import QueryAwareSelector
from ztok_rag.selection.sentences import BITS, SentenceScorer, probabilities, split_sentences
from ztok_rag.selection.text_pieces import allocate, split_pieces
from ztok_rag.selection.words import find_words


@pytest.fixture
def selector(compressor: ZCompressor, store: ZStore) -> QueryAwareSelector:
    return QueryAwareSelector.over(compressor, store)


def in_range(z: ZSequence, text: str, words: str) -> int:
    """Z-tokens whose spans begin within some words of the text."""
    start = text.index(words)
    starts = z.spans[:, 0]
    return int(((starts >= start) & (starts < start + len(words))).sum())


def test_sentences_cover_the_text() -> None:
    text = "  Dr. Berg left.\n\nHe said: no!  A list\n- one\n- two"
    spans = split_sentences(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert len(spans) == 5
    assert split_sentences("one word") == ((0, 8),)


def test_pieces_cover_the_text_within_sentences() -> None:
    text = "  " + LIGHTHOUSE + "\n\n" + BAKERY
    pieces = split_pieces(text)
    assert "".join(text[a:b] for a, b in pieces) == text
    ends = {b for _, b in split_sentences(text)}
    assert ends <= {b for _, b in pieces}
    words = [len(text[a:b].split()) for a, b in pieces]
    assert min(words[1:]) >= 1 and max(words) <= 12
    assert split_pieces("one word") == ((0, 8),)


@pytest.mark.parametrize(
    ("question", "text", "number"),
    [
        ("Who built the lighthouse?", 0, 0),
        ("What fuel did the lamp burn?", 0, 1),
        ("Who was the last keeper?", 0, 2),
        ("Where did the oven come from?", 1, 1),
        ("What is sold on Sundays?", 1, 2),
    ],
)
def test_scorer_finds_the_sentence(
    question: str, text: int, number: int, selector: QueryAwareSelector
) -> None:
    probabilities = selector.scorer.probabilities(question, [LIGHTHOUSE, BAKERY])
    assert sum(p.sum() for p in probabilities) == pytest.approx(1.0)
    best = max((float(p), t, s) for t, row in enumerate(probabilities) for s, p in enumerate(row))
    assert best[1:] == (text, number)


def test_sentences_gain_by_a_relevant_one_in_their_text() -> None:
    weak, strong = [0.1, 0.0], [0.6, 0.5]
    alone, beside = probabilities([np.array([weak]), np.array([weak, strong])])
    assert alone[0] < beside[0] < beside[1]


def test_question_decides_where_the_z_tokens_go(
    selector: QueryAwareSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [LIGHTHOUSE, BAKERY]
    keeper, lamp, oven = (
        selector.compose(question, texts, 4)[0]
        for question in (
            "Who was the last keeper?",
            "What did the lamp burn?",
            "Where was the oven brought from?",
        )
    )
    tokens = sum(z.source_tokens for z in keeper)
    for composed in (keeper, lamp, oven):
        assert sum(map(len, composed)) <= round(tokens / 4)
    # Where nothing is enough, all that the rate allows is spent.
    monkeypatch.setattr("ztok_rag.selection.text_pieces.ENOUGH", 2.0)
    for question in (
        "Who was the last keeper?",
        "What did the lamp burn?",
        "Where was the oven brought from?",
    ):
        filled, _ = selector.compose(question, texts, 4)
        assert sum(map(len, filled)) == pytest.approx(tokens / 4, abs=2)
    sentence = "The last keeper, Tomas Berg, left the island in 1968"
    assert in_range(keeper[0], LIGHTHOUSE, sentence) > in_range(lamp[0], LIGHTHOUSE, sentence)
    assert len(oven[1]) > len(oven[0])
    assert len(keeper[0]) > len(keeper[1])


def test_composed_sequence_is_one_like_others(
    selector: QueryAwareSelector, compressor: ZCompressor
) -> None:
    long = " ".join([LIGHTHOUSE, BAKERY] * 5)
    (z,), compressed = selector.compose("Who was the last keeper?", [long], 6)
    assert compressed == 1
    assert ZSequence.from_bytes(z.to_bytes(), compressor.model.token_code) == z
    assert z.source_tokens == compressor.count_tokens(long)
    assert (np.diff(z.spans[:, 0]) >= 0).all()
    assert z.spans[:, 1].max() <= len(long)
    assert not z.digest


def test_a_text_that_does_not_answer_is_read_as_one_z_token(selector: QueryAwareSelector) -> None:
    sequences, _ = selector.compose("Who built the lighthouse?", [LIGHTHOUSE, BAKERY], 32)
    assert len(sequences[1]) == 1
    assert sequences[1].spans.tolist() == [[0, len(BAKERY)]]


def test_pieces_that_do_not_answer_are_left_out(selector: QueryAwareSelector) -> None:
    (z,), _ = selector.compose("Who was the last keeper?", [LIGHTHOUSE], 8)
    read = selector.compressor.held_text(z)
    assert "Tomas Berg" in read
    assert in_range(z, LIGHTHOUSE, "burned whale oil until 1901") == 0


def test_rate_one_is_the_text(selector: QueryAwareSelector, compressor: ZCompressor) -> None:
    (z,), compressed = selector.compose("Who?", [BAKERY], 1)
    assert compressed == 1
    assert compressor.decompress([z]) == [BAKERY]


def test_one_pass_serves_all_rates_and_questions(
    selector: QueryAwareSelector, compressor: ZCompressor, store: ZStore
) -> None:
    assert selector.prepare([LIGHTHOUSE]) == 1
    assert selector.prepare([LIGHTHOUSE]) == 0
    again = QueryAwareSelector.over(compressor, store)
    for rate in (2, 3, 4, 10, 32):
        (z,), compressed = again.compose("Who built it?", [LIGHTHOUSE], rate)
        assert compressed == 0
        assert len(z) <= max(round(z.source_tokens / rate), 3)
    store.delete([LIGHTHOUSE])
    assert len(store) == 0


def test_sentences_are_embedded_once(
    compressor: ZCompressor, store: ZStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SentenceScorer(compressor.tokenizer, store=store)
    first.prepare([LIGHTHOUSE])
    kind = next(key for key in store._cache if key.startswith("sentences"))
    assert len(store._cache[kind]) == 4 + 3 * BITS // 8  # after a checksum

    second = SentenceScorer(compressor.tokenizer, store=store)
    monkeypatch.delattr(BaseEmbedding, "get_text_embedding_batch")
    (p,) = second.probabilities("Who was the last keeper?", [LIGHTHOUSE])
    assert p.argmax() == 2


def test_allocation_keeps_the_budget_and_prefers_what_is_asked_for() -> None:
    costs = {1.0: np.full(3, 20), 4.0: np.full(3, 5), math.inf: np.zeros(3, dtype=int)}
    scores = np.array([0.1, 0.8, 0.1])
    assert allocate(scores, costs, 4) == [math.inf, math.inf, math.inf]
    assert allocate(scores, costs, 15) == [4.0, 4.0, 4.0]
    assert allocate(scores, costs, 8) == [math.inf, 4.0, math.inf]
    assert allocate(scores, costs, 25) == [4.0, 1.0, math.inf]
    assert allocate(scores, costs, 60) == [1.0, 1.0, 1.0]
    assert allocate(scores, costs, 60, 0.85) == [1.0, 1.0, math.inf]
    assert allocate(scores, costs, 60, 0.75) == [math.inf, 1.0, math.inf]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "渡船七点开。船票四元\uff01「真的\uff1f」是。",
            ["渡船七点开。", "船票四元\uff01", "「真的\uff1f」", "是。"],
        ),
        ("川の水車です。工場は閉まりました。", ["川の水車です。", "工場は閉まりました。"]),
        ("यह नाव है। टिकट चार।", ["यह नाव है। ", "टिकट चार।"]),
        ("It costs 6.30 today. No? Yes.", ["It costs 6.30 today. ", "No? ", "Yes."]),
        ("One line\nanother", ["One line\n", "another"]),
    ],
)
def test_sentences_end_in_any_script(text: str, sentences: list[str]) -> None:
    assert [text[a:b] for a, b in split_sentences(text)] == sentences


@pytest.mark.parametrize(
    "text",
    [
        "渡船每天早上七点一刻开往奥德林岛和其他许多岛屿直到冬天来临为止",
        "เรือข้ามฟากออกทุกเช้าเวลาเจ็ดโมงสิบห้าและกลับมาตอนเย็นทุกวันยกเว้นวันอาทิตย์",
        "x" * 2000,
        "🧑‍🍳" * 200,
        "http://example.org/" + "a/b-c" * 100,
    ],
)
def test_pieces_exist_without_spaces_and_cut_no_character(text: str) -> None:
    pieces = split_pieces(text)
    assert len(pieces) > 1 and pieces[0][0] == 0 and pieces[-1][1] == len(text)
    assert all(b == c for (_, b), (c, _) in itertools.pairwise(pieces))
    whole = {match.start() for match in regex.finditer(r"\X", text)}
    assert {start for start, _ in pieces} <= whole


def test_words_of_chinese_and_japanese_are_characters() -> None:
    assert [text for text, _, _ in find_words("船票 costs 4 元")] == ["船", "票", "cost", "4", "元"]
