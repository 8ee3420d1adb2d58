"""The benchmarks' peers, on the real default models with short texts."""

from __future__ import annotations

import sys

import pytest
from conftest import PASSAGE

import peers
from peers import self_information
from peers.pieces import Pieces
from ztok_rag import ZCompressor
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Shorten

MILL = (
    "The mill on Reed Lane was built in 1902. It ground barley for the breweries of the valley. "
    "A fire took its roof in 1954."
)
OIL = "Which oil did the lamp burn?"
KEPT = "whale oil until 1901"


@pytest.fixture(scope="module")
def shorten(compressor: ZCompressor) -> dict[str, Shorten]:
    return peers.make_peers(compressor, best_first=True)


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


@pytest.mark.parametrize("name", [n for n in peers.PEER_NAMES if n != "longllmlingua"])
@pytest.mark.parametrize("budget", [9, 40])
def test_budget_and_order_are_kept(
    compressor: ZCompressor, shorten: dict[str, Shorten], name: str, budget: int
) -> None:
    text = shorten[name](OIL, [PASSAGE, MILL], budget)
    assert 0 < compressor.count_tokens(text) <= budget
    words = text.replace("[…omitted…]", " ").split()
    assert is_subsequence(words, f"{PASSAGE} {MILL}".split())


def test_sentences_that_the_question_is_about_are_kept(shorten: dict[str, Shorten]) -> None:
    text = shorten["sentences"](OIL, [MILL, PASSAGE], 34)
    assert KEPT in text and "breweries" not in text
    assert "1954" in shorten["sentences"]("What happened to its roof?", [PASSAGE, MILL], 24)


def test_trimwise_keeps_the_paragraphs_that_the_question_is_about(
    compressor: ZCompressor, shorten: dict[str, Shorten]
) -> None:
    parts = [f"{sentence}." for sentence in PASSAGE.removesuffix(".").split(". ")]
    text = shorten["trimwise"](OIL, [MILL, "\n\n".join(parts)], 44)
    assert KEPT in text and "breweries" not in text
    assert shorten["trimwise"](OIL, [MILL, PASSAGE], 40).startswith("The lighthouse on Gull Rock")


def test_pieces_are_charged_for_all_that_is_kept_to_choose_them(
    compressor: ZCompressor, shorten: dict[str, Shorten]
) -> None:
    text = len(MILL.encode())
    assert shorten["sentences"].stored_bytes([MILL]) == text
    (kept,) = compressor.compress_all_rates([MILL])
    assert shorten["pieces"].stored_bytes([MILL]) > text + len(kept.to_bytes())


def test_pieces_are_compressed_before_there_is_a_question(compressor: ZCompressor) -> None:
    pieces = Pieces(compressor)
    pieces.prepare([MILL, PASSAGE])
    assert pieces.focus.prepare([MILL, PASSAGE]) == 0


def test_a_sentence_that_does_not_fit_is_cut(
    compressor: ZCompressor, shorten: dict[str, Shorten]
) -> None:
    text = shorten["sentences"](OIL, [MILL, PASSAGE], 8)
    assert text and text in PASSAGE and text.startswith("Its lamp burned")


def test_fewer_chunks_are_whole_and_the_best(
    compressor: ZCompressor, shorten: dict[str, Shorten]
) -> None:
    room = compressor.count_tokens(PASSAGE)
    assert shorten["fewer-chunks"](OIL, [MILL, PASSAGE], room) == MILL
    unranked = peers.make_peers(compressor, best_first=False)["fewer-chunks"]
    assert unranked(OIL, [MILL, PASSAGE], room) == PASSAGE
    assert unranked(OIL, [MILL, PASSAGE], 1000) == f"{MILL}\n\n{PASSAGE}"
    assert PASSAGE.startswith(unranked(OIL, [MILL, PASSAGE], 10))


def test_self_information_keeps_rare_words(shorten: dict[str, Shorten]) -> None:
    words = shorten["self-information"](OIL, [PASSAGE], 30).split()
    assert {"1873", "Marta"} & set(words) and "dynamo" in words
    assert words.count("the") < PASSAGE.split().count("the") / 2


def test_long_chunks_are_read_in_windows(
    shorten: dict[str, Shorten], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shorten["self-information"](OIL, [MILL], 1000)
    assert whole == MILL
    monkeypatch.setattr(self_information, "_WINDOW", 16)
    monkeypatch.setattr(self_information, "_BATCH_TOKENS", 32)
    assert shorten["self-information"](OIL, [MILL, PASSAGE], 1000) == f"{MILL}\n\n{PASSAGE}"


@pytest.mark.parametrize("copies", [1, 4])
def test_longllmlingua_shortens_short_and_long_texts(
    compressor: ZCompressor, shorten: dict[str, Shorten], copies: int
) -> None:
    chunks = [f"{i}. {PASSAGE}" for i in range(copies)]
    tokens = sum(map(compressor.count_tokens, chunks))
    text = shorten["longllmlingua"](OIL, chunks, tokens // 4)
    assert tokens / 8 < compressor.count_tokens(text) < tokens / 3
    assert "Question" not in text and OIL not in text


def test_a_missing_package_is_named_before_anything_runs(
    compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers.check_packages(peers.PEER_NAMES)
    monkeypatch.setitem(sys.modules, "llama_index.postprocessor.trimwise", None)
    peers.check_packages(["ztok", "sentences", "longllmlingua"])
    with pytest.raises(DataError, match=r"llama-index-postprocessor-trimwise.*ztok-rag.bench"):
        peers.check_packages(["trimwise"])
    assert set(peers.make_peers(compressor, best_first=True)) == set(peers.PEER_NAMES)
