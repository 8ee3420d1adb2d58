"""Finding where answers may stand, and training that."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import BAKERY, LIGHTHOUSE
from numpy.typing import NDArray

from ztok_rag import ZCompressor
from ztok_rag.codec.model import ZModel, is_relevance
from ztok_rag.codec.relevance import HINTS, RelevanceModel
from ztok_rag.selection import relevance
from ztok_rag.selection.relevance import Source, question_hints
from ztok_rag.selection.words import find_words, question_words, stem
from ztok_rag.training.passages import Passage
from ztok_rag.training.relevance import (
    RelevanceSettings,
    answer_nats,
    find_places,
    prepare,
    train_relevance,
)

PASSAGES = [
    Passage(
        LIGHTHOUSE,
        (
            ("Who built the lighthouse?", ("Marta Lindqvist",)),
            ("What did the lamp burn?", ("whale oil",)),
            ("Who was the last keeper?", ("Tomas Berg", "Berg")),
        ),
    ),
    Passage(
        BAKERY,
        (
            ("Where is the bakery?", ("on Harbour Lane",)),
            ("What does Elin Strand sell?", ("cardamom buns",)),
        ),
    ),
    Passage("A text with a question that it does not answer.", (("Who is it?", ("nobody",)),)),
]


def sources(compressor: ZCompressor, texts: list[str]) -> list[Source]:
    whole, nested = compressor.compress(texts, 1.0), compressor.compress_nested(texts)
    parts = zip(texts, whole, nested, strict=True)
    return [Source.of(text, w, n, compressor.model.quantizer) for text, w, n in parts]


def find_answers(
    compressor: ZCompressor, question: str, described: list[Source]
) -> list[NDArray[np.float32]]:
    model = compressor.model
    return relevance.find_answers(model, question, described)


@pytest.fixture
def untrained(compressor: ZCompressor) -> ZModel:
    """The default model with a relevance model of its own, as before any training."""
    model = copy.copy(compressor.model)
    model._modules = dict(model._modules)
    dims = compressor.model.relevance.residual.in_features  # type: ignore[union-attr]
    torch.manual_seed(0)
    model.relevance = RelevanceModel(model.base.hidden_size, dims).eval()
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
    described = sources(compressor, texts)
    likely = find_answers(compressor, question, described)
    assert [p.shape for p in likely] == [s.ids.shape for s in described]
    assert sum(float(p.sum()) for p in likely) == pytest.approx(1.0, abs=1e-4)
    (place,) = find_places(texts[text], [answer], described[text])
    in_answer = float(likely[text][place].sum())
    tokens = sum(len(s.ids) for s in described)
    assert in_answer > 5 * place.sum() / tokens


def test_untrained_it_prefers_no_token(untrained: ZModel, compressor: ZCompressor) -> None:
    described = sources(compressor, [LIGHTHOUSE, BAKERY])
    for row in find_answers(ZCompressor(untrained), "Who built the lighthouse?", described):
        assert row == pytest.approx(1 / sum(len(s.ids) for s in described))


def test_padding_changes_nothing(compressor: ZCompressor) -> None:
    short, long = sources(compressor, ["Elin Strand sells buns.", LIGHTHOUSE])
    (alone,) = find_answers(compressor, "What does she sell?", [short])
    beside, _ = find_answers(compressor, "What does she sell?", [short, long])
    assert beside / beside.sum() == pytest.approx(alone, abs=1e-4)


def test_a_question_without_words_is_no_error(compressor: ZCompressor) -> None:
    (row,) = find_answers(compressor, "", sources(compressor, [BAKERY]))
    assert np.isfinite(row).all()


def test_places_cover_the_answer_wherever_it_stands(compressor: ZCompressor) -> None:
    text = "Berg came in 1960. In 1968 Tomas Berg left."
    (source,) = sources(compressor, [text])
    places = find_places(text, ["Tomas Berg", "Berg", "  "], source)
    found = {"".join(text[a:b] for a, b in source.spans[place]).strip(" ") for place in places}
    assert found == {"Berg", "Tomas Berg"}
    assert len(places) == 3
    assert find_places(text, ["Lindqvist"], source).shape == (0, len(source.ids))


def test_hints_mark_the_words_of_the_question(compressor: ZCompressor) -> None:
    (source,) = sources(compressor, [LIGHTHOUSE])
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


def test_training_finds_answers(untrained: ZModel) -> None:
    kept, described, asked = prepare(untrained, PASSAGES, 256, progress=False)
    assert kept == PASSAGES[:2]
    assert len(described) == 2
    assert [a.passage for a in asked] == [0, 0, 0, 1, 1]

    def nats() -> float:
        with torch.inference_mode():
            rng = np.random.default_rng(0)
            return float(answer_nats(untrained, asked, described, 1, rng).mean())

    before = nats()
    codes_before = untrained.fingerprint
    settings = RelevanceSettings(steps=40, batch=5, distractors=1, warmup=4, lr=3e-3)
    assert train_relevance(untrained, PASSAGES, settings, progress=False) == 5
    assert nats() < before - 1.0
    untrained._fingerprint = None
    assert untrained.fingerprint == codes_before


def test_nothing_to_train_on_leaves_the_model(untrained: ZModel) -> None:
    before = {n: p.clone() for n, p in untrained.named_parameters() if is_relevance(n)}
    assert train_relevance(untrained, PASSAGES[2:], progress=False) == 0
    assert train_relevance(untrained, PASSAGES, RelevanceSettings(steps=0), progress=False) == 0
    for name, parameter in untrained.named_parameters():
        if is_relevance(name):
            assert torch.equal(parameter, before[name])
