"""Texts in the code of the base LLM."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import BAKERY, PASSAGE
from tests.training.tiny_base import tiny_base
from ztok_rag import ZCompressor
from ztok_rag.codec import llm_code
from ztok_rag.codec.llm_code import LosslessText, coding_base, decode_ids, encode_ids
from ztok_rag.errors import SequenceError

BASE = tiny_base()


@given(ids=st.lists(st.integers(0, 1999), max_size=60), window=st.sampled_from([4, 16, 1024]))
@settings(max_examples=25, deadline=None)
def test_any_ids_come_back(ids: list[int], window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm_code, "WINDOW", window)
        patch.setattr(llm_code, "_AT_ONCE", 3)
        data = encode_ids(BASE, np.array(ids, np.int64))
        assert decode_ids(BASE, data, len(ids)).tolist() == ids


@given(data=st.binary(max_size=40), count=st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_damaged_data_give_other_ids_or_an_error(data: bytes, count: int) -> None:
    try:
        assert len(decode_ids(BASE, data, count)) == count
    except SequenceError as error:
        assert "machine of the same kind" in str(error)


def test_a_text_takes_few_bits_and_comes_back(compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    base = compressor.model.base
    coded = LosslessText.encode(PASSAGE, z.ids, base, 4.0)
    assert coded is not None and coding_base(base) is base
    assert 8 * len(coded.data) < 1.6 * len(PASSAGE)
    back = LosslessText.from_bytes(coded.to_bytes())
    assert back == coded
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert back.decode(base) == PASSAGE
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_what_does_not_come_back_is_told() -> None:
    ids = np.array(BASE.tokenizer(BAKERY, add_special_tokens=False)["input_ids"])
    assert LosslessText.encode(BAKERY + "!", ids, BASE, 4.0) is None
    coded = LosslessText.encode(BAKERY, ids, BASE, 4.0)
    assert coded is not None
    with pytest.raises(SequenceError, match="--base"):
        dataclasses.replace(coded, base="0" * 8).decode(BASE)
    with pytest.raises(SequenceError, match="machine of the same kind"):
        dataclasses.replace(coded, digest=bytes(8)).decode(BASE)
    with pytest.raises(SequenceError, match="no losslessly compressed text"):
        LosslessText.from_bytes(b"ZT3\n" + bytes(40))
    with pytest.raises(SequenceError):
        LosslessText.from_bytes(coded.to_bytes()[:16])
