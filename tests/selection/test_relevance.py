"""Finding where answers may stand, and training that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import BAKERY, LIGHTHOUSE
from numpy.typing import NDArray

from ztok_rag import ZCompressor
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.relevance import HINTS, RelevanceModel
from ztok_rag.selection import relevance
from ztok_rag.selection.relevance import PassageFeatures, question_hints
from ztok_rag.selection.words import find_words, question_words, stem
from ztok_rag.training.questions import find_places


def features(compressor: ZCompressor, texts: list[str]) -> list[PassageFeatures]:
    compressed = compressor.compress_all_rates(texts)
    return [PassageFeatures.of(text, own) for text, own in zip(texts, compressed, strict=True)]


def find_answers(
    compressor: ZCompressor, question: str, described: list[PassageFeatures]
) -> list[NDArray[np.float32]]:
    model = compressor.model
    return relevance.find_answers(model, question, described)


@pytest.fixture
def untrained(compressor: ZCompressor) -> ZModel:
    """The default model with an untrained selector."""
    model = ZModel.__new__(ZModel)  # a copy would be the same model
    model.__dict__.update(compressor.model.__dict__)
    model._modules = dict(model._modules)
    torch.manual_seed(0)
    model.selector = RelevanceModel(model.base.hidden_size).eval()
    return model


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ("Who built the lighthouse?", 0, "Marta Lindqvist"),
        ("When was the lighthouse built?", 0, "1873"),
        ("Who was the last keeper?", 0, "Tomas Berg"),
        ("Who is the owner of the bakery?", 1, "Elin Strand"),
    ],
)
def test_answers_are_found(question: str, text: int, answer: str, compressor: ZCompressor) -> None:
    texts = [LIGHTHOUSE, BAKERY]
    described = features(compressor, texts)
    likely = find_answers(compressor, question, described)
    assert [p.shape for p in likely] == [s.ids.shape for s in described]
    assert sum(float(p.sum()) for p in likely) == pytest.approx(1.0, abs=1e-4)
    (place,) = find_places(texts[text], [answer], described[text])
    in_answer = float(likely[text][place].sum())
    tokens = sum(len(s.ids) for s in described)
    assert in_answer > 5 * place.sum() / tokens


def test_untrained_it_prefers_no_token(untrained: ZModel, compressor: ZCompressor) -> None:
    described = features(compressor, [LIGHTHOUSE, BAKERY])
    for row in find_answers(ZCompressor(untrained), "Who built the lighthouse?", described):
        assert row == pytest.approx(1 / sum(len(s.ids) for s in described))


def test_padding_changes_nothing(compressor: ZCompressor) -> None:
    short, long = features(compressor, ["Elin Strand sells buns.", LIGHTHOUSE])
    (alone,) = find_answers(compressor, "What does she sell?", [short])
    beside, _ = find_answers(compressor, "What does she sell?", [short, long])
    assert beside / beside.sum() == pytest.approx(alone, abs=1e-4)


def test_a_question_without_words_is_no_error(compressor: ZCompressor) -> None:
    (row,) = find_answers(compressor, "", features(compressor, [BAKERY]))
    assert np.isfinite(row).all()


def test_places_cover_the_answer_wherever_it_stands(compressor: ZCompressor) -> None:
    text = "Berg came in 1960. In 1968 Tomas Berg left."
    (source,) = features(compressor, [text])
    places = find_places(text, ["Tomas Berg", "Berg", "  "], source)
    found = {"".join(text[a:b] for a, b in source.spans[place]).strip(" ") for place in places}
    assert found == {"Berg", "Tomas Berg"}
    assert len(places) == 3
    assert find_places(text, ["Lindqvist"], source).shape == (0, len(source.ids))


def test_hints_mark_the_words_of_the_question(compressor: ZCompressor) -> None:
    (source,) = features(compressor, [LIGHTHOUSE])
    weights = question_words("Which lamps burned oil?", compressor.tokenizer)
    assert sum(weights.values()) == pytest.approx(1.0)
    hints = question_hints(weights, source)
    assert hints.shape == (len(source.ids), HINTS)
    rows = zip(source.spans, hints, strict=True)
    marked = {LIGHTHOUSE[a:b].strip().lower() for (a, b), row in rows if row[0]}
    assert {"lamp", "oil"} <= marked
    assert "island" not in marked
    near, far = (LIGHTHOUSE.index(word) for word in ("whale", "island"))
    at = [int(np.searchsorted(source.spans[:, 1], place, side="right")) for place in (near, far)]
    assert hints[at[0], 2] > hints[at[1], 2]


def test_words_share_a_stem() -> None:
    assert stem("lamps") == stem("lamp")
    assert [(s, a, b) for s, a, b in find_words("Two lamps")] == [("two", 0, 3), ("lamp", 4, 9)]
