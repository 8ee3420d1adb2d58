"""Rows and batches: what is read, what is predicted, and where the pointer should look."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tiny_base import make_rows, tiny_model, write_questions

from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import ZModel
from ztok_rag.errors import DataError
from ztok_rag.training.batches import LENGTHS, RowStream, StreamPlan, load_batches
from ztok_rag.training.rows import SHARES, Kind, Row, Rows, RowSettings, SpanMode


@pytest.fixture(scope="module")
def model() -> ZModel:
    return tiny_model()


@pytest.fixture(scope="module")
def rows(model: ZModel, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.mktemp("rows")
    return make_rows(model, write_questions(folder / "questions.jsonl"), folder / "data")


def drawn(rows: Rows, kind: str, count: int = 60) -> list[Row]:
    draws = (rows.draw(np.random.default_rng([1, i]), {kind: 1.0}) for i in range(count))
    return [row for some in draws for row in some]


def decoded(model: ZModel, ids: object) -> str:
    return str(model.base.tokenizer.decode(ids))


@pytest.mark.parametrize("kind", SHARES)
def test_the_last_positions_predict_the_target(kind: str, rows: Rows) -> None:
    every = drawn(rows, kind)
    assert len(every) > 20
    for row in every:
        codes = row.positions.codes
        assert row.kind == Kind[kind.upper()]
        assert codes[0].tolist() == [rows.phrases.start[0]] + [-1] * (rows.slots - 1)
        read = codes[len(codes) - len(row.target) + 1 :]
        assert read[:, 0].tolist() == row.target[:-1].tolist()
        assert (read[:, 1:] == -1).all()


@pytest.mark.parametrize("kind", ["answer", "cloze", "excerpt"])
def test_target_tokens_stand_where_the_pointer_says(kind: str, rows: Rows) -> None:
    ids = rows.data.passages.ids
    pointed = [row for row in drawn(rows, kind) if row.steps]
    assert len(pointed) > 20
    for row in pointed:
        target = row.target[: row.steps]
        for place in row.places.tolist():
            # An answer's first word may have another token for it without the space.
            same = ids[place : place + row.steps] == target
            assert same.all() or (kind == "answer" and same[1:].all())
    if kind == "cloze":  # the words that were left out are not among those that are read
        for row in pointed:
            spans = row.positions.spans
            assert ((spans[:, :1] <= row.places) & (row.places < spans[:, 1:])).any()


def test_spans_of_z_tokens_cover_what_they_hold(rows: Rows) -> None:
    ids = rows.data.passages.ids
    for row in drawn(rows, "answer"):
        for codes, (start, end) in zip(row.positions.codes, row.positions.spans, strict=True):
            if start >= 0:
                assert set(codes[codes >= 0].tolist()) <= set(ids[start:end].tolist())


@pytest.mark.parametrize("mode", SpanMode)
@pytest.mark.parametrize("rate", [1, 3, 8])
def test_a_repeated_text_is_what_the_codes_hold(rate: int, mode: SpanMode, rows: Rows) -> None:
    packed = rows.pack(0, 5, 69, rate, mode, np.random.default_rng(0))
    assert len(packed) == round(64 / rate)
    held = packed.codes[packed.codes >= 0]
    np.testing.assert_array_equal(held, rows.data.passages[0][5:69])


@pytest.mark.parametrize("rate", [1, 2, 5, 8, 16])
def test_packing_by_weight_is_what_the_compressor_does(
    rate: float, rows: Rows, model: ZModel
) -> None:
    compressor = ZCompressor(model)
    for passage in range(3):
        text = decoded(model, rows.data.passages[passage])
        (z,) = compressor.compress([text], rate)
        packed = rows.pack(passage, 0, len(rows.data.passages[passage]), rate)
        np.testing.assert_array_equal(packed.codes, z.codes)


@pytest.mark.parametrize(("before", "times"), [(0.0, {1}), (1.0, {2})])
def test_the_question_is_asked_before_the_context(
    before: float, times: set[int], rows: Rows, model: ZModel
) -> None:
    asking = Rows(
        rows.data, rows.surprisal, rows.code, rows.phrases, rows.slots, RowSettings(before=before)
    )
    seen = set()
    for row in drawn(asking, "answer", 20):
        text = row.positions.spans[:, 0] < 0
        prompt = decoded(model, row.positions.codes[text, 0].tolist())
        seen.add(prompt.count("Who built the mill of"))
    assert seen == times


def test_the_answer_follows_its_question(rows: Rows, model: ZModel) -> None:
    for row in drawn(rows, "answer", 20):
        answer = decoded(model, row.target.tolist()).strip()
        assert answer.endswith("</s>")
        assert answer.removesuffix("</s>").istitle()


def stream(rows: Rows, state: Mapping[str, object] | None = None) -> RowStream:
    return RowStream(rows, SHARES, LENGTHS[:5], 512, [3], dict(state) if state else None)


def test_batches_have_one_length_and_all_rows_in_it(rows: Rows) -> None:
    own = stream(rows)
    for _ in range(12):
        batch = next(own)
        assert batch.length in LENGTHS[:5]
        assert batch.codes.shape == (512 // batch.length * batch.length, rows.slots)
        assert batch.mass == pytest.approx(float(batch.weight.sum()))
        assert batch.target.shape == batch.at.shape == batch.kind.shape
        asked = batch.shares > 0
        places = batch.queries + torch.arange(len(batch.queries)).unsqueeze(1) * batch.length
        assert set(places[asked].tolist()) <= set(batch.at.tolist())


def test_a_stream_goes_on_from_its_state(rows: Rows) -> None:
    whole = stream(rows)
    for _ in range(5):
        next(whole)
    other = stream(rows, whole.state)
    for _ in range(8):
        assert torch.equal(next(whole).codes, next(other).codes)


def batches(rows: Rows, plan: StreamPlan, count: int, step: int = 0) -> list[torch.Tensor]:
    made = load_batches(rows, SHARES, plan, size=256, longest=512, seed=[0], step=step)
    return [next(made).codes for _ in range(count)]


def test_devices_share_out_the_batches_of_one(rows: Rows) -> None:
    alone = batches(rows, StreamPlan(per_step=2, workers=1), 6)
    first, second = (
        batches(rows, StreamPlan(2, workers=1, process=i, processes=2), 3) for i in range(2)
    )
    for one, other in zip(alone, [x for pair in zip(first, second, strict=True) for x in pair],
                          strict=True):  # fmt: skip
        assert torch.equal(one, other)


def test_a_batch_too_small_for_a_row_is_an_error(rows: Rows) -> None:
    with pytest.raises(DataError, match="--size"):
        load_batches(rows, SHARES, StreamPlan(), size=32, longest=512, seed=[0])


def test_text_that_allows_no_row_is_an_error(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztok_rag.training.batches._FRUITLESS", 5)
    monkeypatch.setattr(Rows, "draw", lambda *_: [])
    with pytest.raises(DataError, match="no answer or"):
        next(stream(rows))
