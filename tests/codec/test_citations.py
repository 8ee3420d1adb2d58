"""Where answers stand in what sequences hold."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor
from ztok_rag.codec.citations import locate


def found(compressor: ZCompressor, answer: str, text: str, rate: float) -> list[str]:
    zs = compressor.compress([BAKERY, text], rate)
    places = locate(answer, zs, compressor.tokenizer)
    assert all(place["handle"] == 1 for place in places)
    return [text[place["start"] : place["end"]] for place in places]


@pytest.mark.parametrize("rate", [1, 2, 4, 8, 16])
def test_places_are_exact_where_all_is_held(compressor: ZCompressor, rate: float) -> None:
    for answer in ("Tomas Berg", "1873", "The lighthouse", "without a crew ever since."):
        assert found(compressor, answer, PASSAGE, rate) == [answer]


def test_an_answer_is_whole_words_and_its_full_stop_may_be_its_own(
    compressor: ZCompressor,
) -> None:
    assert found(compressor, "187", PASSAGE, 4) == []
    assert found(compressor, "Tomas Berg.", PASSAGE, 4) == ["Tomas Berg"]
    assert found(compressor, "Tomas  \n Berg", PASSAGE, 4) == ["Tomas Berg"]
    for nothing in ("", " ", ".", "Elmo"):
        assert locate(nothing, compressor.compress([PASSAGE], 4), compressor.tokenizer) == []


def test_every_place_is_found(compressor: ZCompressor) -> None:
    text = "Ada paid. Ada left."
    zs = compressor.compress([text, text], 2)
    places = [(p["handle"], p["start"]) for p in locate("Ada", zs, compressor.tokenizer)]
    assert places == [(0, 0), (0, 10), (1, 0), (1, 10)]


@pytest.mark.parametrize(
    "text", ["東京タワーは1958年に完成した。", "👩‍👩‍👧‍👦 e\u0301te\u0301 ภาษาไทย 1958."]
)
def test_places_in_other_scripts(compressor: ZCompressor, text: str) -> None:
    assert found(compressor, "1958", text, 3) == (["1958"] if " 1958" in text else [])


def test_what_was_left_out_ends_a_match(compressor: ZCompressor) -> None:
    (compressed,) = compressor.compress_all_rates([PASSAGE])
    at = [int(np.searchsorted(compressed.starts, PASSAGE.index(w))) for w in (" Tomas", " Berg")]
    others = np.array([i for i in range(len(compressed)) if not at[0] <= i < at[1]])
    z = compressed.view(others, 2, compressor.slots)
    assert locate("keeper, Tomas Berg", [z], compressor.tokenizer) == []
    (place,) = locate("left the island", [z], compressor.tokenizer)
    assert PASSAGE[place["start"] : place["end"]] == "left the island"


def test_places_above_the_slots_are_near(compressor: ZCompressor) -> None:
    text = f"{PASSAGE} {BAKERY}"
    (z,) = compressor.compress([text], 24)
    for place in locate("Berg", [z], compressor.tokenizer):
        assert abs(place["start"] - text.index("Berg")) <= 12
