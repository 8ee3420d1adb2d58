"""Selected text: whole words and characters in reading order, in any script."""

from __future__ import annotations

import numpy as np
import pytest
import regex

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor
from ztok_rag.selection.selected_text import selected_text, split_words

TEXTS = (
    PASSAGE,
    "Don't round 3.14, he said (twice): \u201cNever!\u201d e\u0301te\u0301",
    "灯塔建于1873年。最后一位守塔人于1968年离开了该岛。",
    "ประภาคารสร้างขึ้นในปี 1873 โดยวิศวกร",
    "A family 👩‍👩‍👧‍👦 and a thumb 👍🏽 went out 🇫🇷 today.",
)


def pieces(shown: str) -> list[str]:
    return [piece.strip() for piece in shown.split("…") if piece.strip()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("rate", [1, 2, 4, 8, 32])
def test_words_and_characters_are_whole_and_in_order(
    compressor: ZCompressor, text: str, rate: float
) -> None:
    (own,) = compressor.compress_all_rates([text])
    shown = selected_text(text, own.starts, own.at(rate, compressor.slots))
    characters = {m.start() for m in regex.finditer(r"\X", text)} | {len(text)}
    edges = {edge for word in split_words(text) for edge in word}
    at = 0
    for piece in pieces(shown):
        start = text.index(piece, at)
        at = start + len(piece)
        assert {start, at} <= characters & edges
    assert pieces(shown)
    assert "\ufffd" not in shown
    if rate == 1:
        assert shown == text


def test_words_are_not_split() -> None:
    text = "Don't round 3.14 up."
    assert [text[a:b] for a, b in split_words(text)][::2] == ["Don't", "round", "3.14", "up"]


def test_a_selection_is_its_words_and_ellipses(compressor: ZCompressor) -> None:
    (own,) = compressor.compress_all_rates([PASSAGE])

    def tokens(part: str) -> np.ndarray:
        start = PASSAGE.index(part)
        return np.flatnonzero((own.starts >= start - 1) & (own.starts < start + len(part) - 1))

    chosen = np.concatenate([tokens("built in 1873"), tokens("Tomas Ber")])
    z = own.view(chosen, 1, compressor.slots)
    assert selected_text(PASSAGE, own.starts, z) == "… built in 1873 … Tomas Berg …"
    z = own.view(tokens("The lighthouse on"), 1, compressor.slots)
    assert selected_text(PASSAGE, own.starts, z) == "The lighthouse on …"
    z = own.view(tokens("a crew ever since"), 1, compressor.slots)
    assert selected_text(PASSAGE, own.starts, z) == "… a crew ever since."


@pytest.mark.parametrize("rate", [2, 4, 8])
def test_it_takes_about_as_many_tokens_as_z_tokens(compressor: ZCompressor, rate: float) -> None:
    text = f"{PASSAGE} {BAKERY}"
    (own,) = compressor.compress_all_rates([text])
    z = own.at(rate, compressor.slots)
    assert compressor.count_tokens(selected_text(text, own.starts, z)) <= len(z) + 2
