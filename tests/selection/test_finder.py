"""The finder: reading questions beside text, its file, and where it is used."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor
from ztok_rag.codec import model as model_module
from ztok_rag.codec.base import tokenize_exactly
from ztok_rag.codec.finder import FINDER_FILE, LONGEST_QUESTION, WINDOW, AnswerFinder
from ztok_rag.codec.model import DEFAULT_CHECKPOINT, ZModel
from ztok_rag.codec.sequence import sequences_of
from ztok_rag.errors import CheckpointError, ZtokError
from ztok_rag.files import write_digests
from ztok_rag.selection import evidence
from ztok_rag.selection.evidence import MOST_READ, find_likely, likely_stretches, read_closely
from ztok_rag.selection.finder import find_chances, find_odds
from ztok_rag.selection.look_twice import LookTwice

QUESTION = "Who was the last keeper?"


@pytest.fixture(scope="module")
def drawn() -> AnswerFinder:
    """A finder of random weights, so that all of them matter."""
    torch.manual_seed(3)
    finder = AnswerFinder(rank=4)
    with torch.no_grad():
        for parameter in finder.trained().values():
            parameter.normal_(std=0.1)
    return finder.requires_grad_(False).eval()


def spans_of(compressor: ZCompressor, texts: list[str]) -> list[np.ndarray]:
    return [own.spans for own in tokenize_exactly(compressor.tokenizer, texts)]


def test_an_untrained_finder_likes_all_tokens_alike() -> None:
    finder = AnswerFinder().eval()
    ((spans, odds),) = find_odds(finder, QUESTION, [PASSAGE])
    assert len(spans) == len(odds) and np.all(odds == 0)


def test_rows_beside_others_are_read_as_alone(drawn: AnswerFinder) -> None:
    texts = [PASSAGE, "Yes.", BAKERY]
    together = find_odds(drawn, QUESTION, texts)
    for text, (spans, odds) in zip(texts, together, strict=True):
        ((own_spans, own),) = find_odds(drawn, QUESTION, [text])
        assert np.array_equal(spans, own_spans)
        assert odds == pytest.approx(own, abs=1e-4)
    assert np.ptp(together[0][1]) > 0.1


def test_merged_weights_say_the_same(drawn: AnswerFinder, tmp_path: Path) -> None:
    drawn.save(tmp_path)
    loaded, merged = AnswerFinder.load(tmp_path), AnswerFinder.load(tmp_path).merge()
    assert loaded.rank == 4
    ((_, one),) = find_odds(loaded, QUESTION, [PASSAGE])
    ((_, other),) = find_odds(merged, QUESTION, [PASSAGE])
    assert one == pytest.approx(other, abs=1e-3)
    again = tmp_path / "again"
    again.mkdir()
    merged.save(again)
    assert (again / FINDER_FILE).read_bytes() == (tmp_path / FINDER_FILE).read_bytes()


def test_long_texts_are_read_in_windows(drawn: AnswerFinder) -> None:
    text = " ".join([PASSAGE, BAKERY] * 5)
    ((_, odds),) = find_odds(drawn, QUESTION, [text])
    assert len(odds) > 2 * WINDOW and np.all(np.isfinite(odds))
    (tokens,) = tokenize_exactly(drawn.tokenizer, [text])
    start = int(tokens.spans[WINDOW - 1, 1])  # the first window, alone
    ((_, first),) = find_odds(drawn, QUESTION, [text[:start]])
    assert odds[:100] == pytest.approx(first[:100], abs=1e-4)


def test_chances_of_other_tokens_keep_their_mass(
    drawn: AnswerFinder, compressor: ZCompressor
) -> None:
    texts = [PASSAGE, "", "日本語のテキスト 🙂 naïve café", BAKERY]
    spans = spans_of(compressor, texts)
    chances = find_chances(drawn, QUESTION, texts, spans)
    assert [len(own) for own in chances] == [len(own) for own in spans]
    assert all(np.all(own > 0) for own in chances)
    assert sum(float(own.sum()) for own in chances) == pytest.approx(1)
    odds = find_odds(drawn, QUESTION, texts)
    best = max(
        (float(own.max()), n, int(own.argmax())) for n, (_, own) in enumerate(odds) if len(own)
    )
    start, end = odds[best[1]][0][best[2]]
    over = (spans[best[1]][:, 0] < end) & (spans[best[1]][:, 1] > start)
    assert chances[best[1]][over].max() > np.median(np.concatenate(chances))
    (alone,) = find_chances(drawn, QUESTION, [""], [np.zeros((0, 2), np.int64)])
    assert len(alone) == 0


def test_stretches_are_the_likeliest_in_order() -> None:
    short = [np.full(5, 0.1), np.zeros(0), np.full(5, 0.1)]
    assert likely_stretches(short, 100) == [(0, 0, 5), (2, 0, 5)]
    likely = [np.full(1000, 1e-5), np.full(700, 1e-5)]
    likely[0][300] = likely[0][400] = likely[1][690] = 0.3
    assert likely_stretches(likely, 400) == [(0, 256, 512), (1, 640, 700)]
    assert likely_stretches(likely, 1000)[-1] == (1, 640, 700)


def test_what_is_not_read_stays_as_likely(
    compressor: ZCompressor, drawn: AnswerFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compressor.model
    texts = [" ".join([BAKERY] * 44), f"{BAKERY} {PASSAGE}"]
    tokens = compressor.tokenize(texts)
    assert sum(map(len, tokens)) > MOST_READ
    monkeypatch.setattr(ZModel, "finder", drawn)
    before = find_likely(model, QUESTION, texts, tokens)
    after = read_closely(model, QUESTION, texts, tokens, before)
    assert sum(float(own.sum()) for own in after) == pytest.approx(1, abs=1e-4)
    read = [np.zeros(len(own), bool) for own in tokens]
    for number, start, end in likely_stretches(before, MOST_READ):
        read[number][start:end] = True
    assert sum(map(np.sum, read)) <= MOST_READ and not all(map(np.all, read))
    for one, other, own in zip(before, after, read, strict=True):
        assert np.array_equal(one[~own], other[~own])
        assert own.sum() == 0 or not np.allclose(one[own], other[own])


def test_a_question_that_is_too_long_is_not_read(
    compressor: ZCompressor, drawn: AnswerFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZModel, "finder", drawn)
    tokens = compressor.tokenize([PASSAGE])
    likely = find_likely(compressor.model, QUESTION, [PASSAGE], tokens)
    for question, is_read in ((QUESTION, True), (f"{BAKERY} {QUESTION}", False)):
        assert len(drawn.tokenizer(question).input_ids) > LONGEST_QUESTION or is_read
        (own,) = read_closely(compressor.model, question, [PASSAGE], tokens, likely)
        assert np.array_equal(own, likely[0]) != is_read


def test_the_finder_chooses_what_is_read_and_not_what_is_copied(
    compressor: ZCompressor, drawn: AnswerFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_the_end(*arguments: list[np.ndarray]) -> list[np.ndarray]:
        (spans,) = arguments[-1]
        return [np.where(np.arange(len(spans)) < len(spans) - 6, 0.003, 0.1)]

    monkeypatch.setattr(evidence, "find_chances", at_the_end)
    (z,) = compressor.compress([f"{PASSAGE}\n\n{BAKERY}"], 8)
    found = []
    for finder in (None, drawn):
        monkeypatch.setattr(ZModel, "finder", finder)
        reading = LookTwice().read(compressor.reader, [z, f"\n\nQuestion: {QUESTION}"])
        (again,) = sequences_of(reading.last)
        assert len(reading.looks) == 1 and reading.likely is not None
        found.append(dict(zip(again.places.tolist(), reading.likely[0].tolist(), strict=True)))
    without, chosen = found
    last = len(z.places) - 1
    assert last in chosen and last not in without
    both = without.keys() & chosen.keys()
    assert both and all(without[place] == chosen[place] for place in both)


def test_a_checkpoint_keeps_its_finder(tmp_path: Path, drawn: AnswerFinder) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    drawn.save(folder)
    write_digests(folder)
    model = ZModel.from_pretrained(folder, device="cpu")
    assert model.finder is not None and model.finder is model.finder
    assert not any(parameter.requires_grad for parameter in model.finder.parameters())
    model.save_pretrained(tmp_path / "copy")
    copied = ZModel.from_pretrained(tmp_path / "copy", device="cpu")
    model.set_finder(AnswerFinder(rank=2))
    model.save_pretrained(folder)  # where it came from
    for saved, rank in ((copied, 4), (ZModel.from_pretrained(folder, device="cpu"), 2)):
        assert saved.finder is not None and saved.finder.rank == rank
    model.set_finder(None)
    model.save_pretrained(folder)
    assert not (folder / FINDER_FILE).exists()
    assert ZModel.from_pretrained(folder, device="cpu").finder is None


def test_a_damaged_finder_is_told_of(tmp_path: Path, drawn: AnswerFinder) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    (folder / FINDER_FILE).write_bytes(b"no tensors")
    write_digests(folder)
    model = ZModel.from_pretrained(folder, device="cpu")
    with pytest.raises(CheckpointError, match=r"finder\.safetensors is damaged.*--finder"):
        _ = model.finder
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        (folder / FINDER_FILE).write_bytes(b"other tensors")
        ZModel.from_pretrained(folder, device="cpu")


def test_without_its_encoder_there_is_no_finder(
    tmp_path: Path,
    drawn: AnswerFinder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def missing() -> Path:
        raise ZtokError("the default embedding model is not installed; run `pip install it`")

    folder = tmp_path / "checkpoint"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    drawn.save(folder)
    write_digests(folder)
    model = ZModel.from_pretrained(folder, device="cpu")
    model_module._has_encoder.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "default_encoder_path", missing)
        with caplog.at_level(logging.WARNING):
            assert model.finder is None and model.finder is None
        assert caplog.text.count("pip install it") == 1
        model.save_pretrained(tmp_path / "copy")
    model_module._has_encoder.cache_clear()
    assert (tmp_path / "copy" / FINDER_FILE).exists()
    assert model.finder is not None
