"""Compressing and decompressing real text with the default checkpoint."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor, ZtokError
from ztok_rag.codec.sequence import ZSequence

UNCLEAN = (
    "Tabs\tand  spaces \n\n\n  and <|im_end|> in a text; 日本語のテキスト、ภาษาไทย, "
    "emoji 👩‍👩‍👧‍👦 and a combining e\u0301."
)


@pytest.mark.parametrize("rate", [1, 1.5, 2, 4, 8, 16])
def test_what_is_held_comes_back_exactly(compressor: ZCompressor, rate: float) -> None:
    texts = [PASSAGE, BAKERY, UNCLEAN, "x", " "]
    zs = compressor.compress(texts, rate)
    assert compressor.decompress(zs) == texts
    assert all(compressor.is_exact(z, text) for z, text in zip(zs, texts, strict=True))
    back = [ZSequence.from_bytes(z.to_bytes(), compressor.model.token_code) for z in zs]
    assert compressor.decompress(back) == texts


def test_the_rate_is_the_one_asked_for(compressor: ZCompressor) -> None:
    (z,) = compressor.compress([" ".join([PASSAGE, BAKERY] * 4)], 8)
    assert z.rate == pytest.approx(8, rel=0.03)


def test_surprising_text_gets_more_z_tokens(compressor: ZCompressor) -> None:
    dull = "The cat sat on the mat. The cat sat on the mat. The cat sat on the mat."
    rare = " Zbigniew Brzeziński 4711 Kuala Lumpur"
    (z,) = compressor.compress([dull + rare], 4)
    in_rare = (z.spans[:, 0] >= len(dull)).sum()
    tokens = compressor.count_tokens(rare)
    assert in_rare > tokens / 4


def test_above_the_slots_the_base_writes_what_was_left_out(compressor: ZCompressor) -> None:
    text = PASSAGE + " " + BAKERY
    (z,) = compressor.compress([text], 24)
    assert not z.holds_all
    with pytest.warns(UserWarning, match="did not come back exactly"):
        (back,) = compressor.decompress([z])
    ids = compressor.tokenizer(text)["input_ids"]
    assert len(z.ids) >= 0.6 * len(ids)
    assert "1873" in back


def test_one_compression_serves_every_rate(compressor: ZCompressor) -> None:
    (all_rates,) = compressor.compress_all_rates([PASSAGE])
    for rate in (2, 4, 8, 32):
        assert all_rates.at(rate, compressor.slots) == compressor.compress([PASSAGE], rate)[0]


def test_codes_do_not_depend_on_the_batch(compressor: ZCompressor) -> None:
    alone = compressor.compress([PASSAGE], 4)[0]
    together = compressor.compress([BAKERY, PASSAGE, BAKERY * 3], 4)[1]
    assert (alone.ids == together.ids).all()
    assert np.mean(alone.spans[: len(together)] == together.spans[: len(alone)]) > 0.95


def test_long_texts_are_weighed_in_windows(compressor: ZCompressor) -> None:
    text = " ".join([PASSAGE, BAKERY] * 8)
    (z,) = compressor.compress([text], 4)
    assert z.source_tokens > compressor.model.config.window
    assert compressor.decompress([z]) == [text]


def test_rate_one_is_the_raw_text(compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], 1)
    ids = compressor.tokenizer(PASSAGE, return_tensors="pt")["input_ids"][0]
    embedded = compressor.model.embed_sequence(z)
    assert torch.equal(embedded, compressor.model.base.embed(ids))


def test_half_a_surrogate_pair_is_repaired_with_a_warning(compressor: ZCompressor) -> None:
    with pytest.warns(UserWarning, match="surrogate"):
        zs = compressor.compress(["a \ud83d b"], 2)
    assert compressor.decompress(zs) == ["a \ufffd b"]


@pytest.mark.parametrize(
    ("rate", "says"),
    [(0.25, "did you mean rate=4"), (0, "from 1 to 64"), (65, "64"), (float("nan"), "64")],
)
def test_rates_out_of_range(compressor: ZCompressor, rate: float, says: str) -> None:
    with pytest.raises(ZtokError, match=says):
        compressor.compress([PASSAGE], rate)


def test_bad_texts(compressor: ZCompressor) -> None:
    with pytest.raises(ZtokError, match="list"):
        compressor.compress(PASSAGE)  # type: ignore[arg-type]
    with pytest.raises(ZtokError, match="text 1 is empty"):
        compressor.compress([PASSAGE, ""])
    assert compressor.compress([], 4) == []


def test_nothing_warns_where_all_is_well(compressor: ZCompressor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compressor.decompress(compressor.compress([PASSAGE], 8))


def test_at_most_two_bytes_per_source_token(compressor: ZCompressor) -> None:
    text = " ".join([PASSAGE, BAKERY])
    (compressed,) = compressor.compress_all_rates([text])
    assert len(compressed.to_bytes()) <= 2.0 * len(compressed)


def test_askers_of_a_compressor_share_one_reader(compressor: ZCompressor) -> None:
    compressor.reader.batcher.max_rows, before = 3, compressor.reader.batcher.max_rows
    try:
        assert compressor.reader.batcher.max_rows == 3
        assert compressor.reader is compressor.reader
    finally:
        compressor.reader.batcher.max_rows = before
