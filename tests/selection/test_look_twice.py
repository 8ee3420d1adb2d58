"""Looking twice: which places are read again, and that the budget holds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor, ZReader, ZtokError
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.selection.look_twice import LookTwice, choose_windows, mix


def test_windows_stand_around_the_likeliest_places() -> None:
    a, b = np.full(100, 0.001), np.full(50, 0.001)
    a[40], b[3] = 0.5, 0.3
    fine = choose_windows([a, b], 20, half=5, rate=100.0)
    assert np.flatnonzero(fine[0]).tolist() == list(range(35, 46))
    assert np.flatnonzero(fine[1]).tolist() == list(range(0, 9))


def test_no_more_is_read_finely_than_the_budget_pays_for() -> None:
    likely = [np.linspace(0, 1, 200)]
    fine = choose_windows(likely, 30, half=20, rate=2.0)
    assert 0 < fine[0].sum() * 0.5 <= 31


def test_a_mixed_sequence_holds_the_same_tokens(compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], 8)
    fine = np.zeros(len(z.places), bool)
    fine[10:20] = True
    mixed = mix(z, fine, 8)
    assert mixed.ids.tolist() == z.ids.tolist()
    assert (mixed.sizes == 1).sum() >= 10
    assert len(z) < len(mixed) < len(z) + 14


def test_both_looks_stay_within_the_budget(compressor: ZCompressor, reader: ZReader) -> None:
    texts = [BAKERY, PASSAGE, BAKERY[::-1], PASSAGE.upper()] * 2
    zs: list[str | ZSequence] = list(compressor.compress(texts, 2))
    question = "\n\nQuestion: Who was the last keeper?\nAnswer:"
    look = LookTwice(share=0.3, from_tokens=100, first_rate=12)
    second = look.apply(reader, [*zs, question])
    held = sum(len(z.places) for z in zs if isinstance(z, ZSequence))
    first = sum(len(z.at(12)) for z in zs if isinstance(z, ZSequence))
    positions = sum(len(z) for z in second if isinstance(z, ZSequence))
    assert first + positions <= 0.3 * held + 4 * len(zs)
    assert second[-1] == question
    fine = "".join(
        compressor.tokenizer.decode(z.codes[z.sizes == 1, 0].tolist())
        for z in second
        if isinstance(z, ZSequence)
    )
    assert "Tomas Berg" in fine or "TOMAS BERG" in fine


def test_short_prompts_are_read_as_they_are(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    assert LookTwice().apply(reader, [z, "?"]) == [z, "?"]


@pytest.mark.parametrize("rate", [2, 4])
def test_no_more_is_read_than_was_given(
    compressor: ZCompressor, reader: ZReader, rate: float
) -> None:
    zs = compressor.compress([BAKERY, PASSAGE, BAKERY.upper(), BAKERY[::-1]], rate)
    look = LookTwice(from_tokens=100, keeps_rest=False)
    second = look.apply(reader, [*zs, "\n\nQuestion: Who was the last keeper?\nAnswer:"])
    first = sum(len(z.at(look.plan([*zs])[1])) for z in zs)
    positions = sum(len(z) for z in second if isinstance(z, ZSequence))
    assert first + positions <= sum(map(len, zs)) + 2
    held = "".join(compressor.held_text(z) for z in second if isinstance(z, ZSequence))
    assert "Tomas Berg" in held


def test_raw_text_and_chosen_pieces_are_read_once(compressor: ZCompressor) -> None:
    look = LookTwice(from_tokens=10)
    raw = compressor.compress([PASSAGE], 1)
    assert look.plan([*raw, "?"])[0] == 0
    (chosen,) = compressor.compress_all_rates([PASSAGE])
    part = chosen.view(np.arange(40), 2, compressor.slots)
    assert look.plan([part, "?"])[0] == 0
    assert look.plan([*compressor.compress([PASSAGE], 2), "?"])[0] > 0


def test_bad_settings() -> None:
    with pytest.raises(ZtokError, match="share"):
        LookTwice(share=0)
