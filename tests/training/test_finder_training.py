"""Training of the finder: what it reads, that it learns, resumes exactly, and alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_base import SETTINGS, interrupted, passages, tiny_base, tiny_model, write_questions
from typer.testing import CliRunner

from ztok_rag import cli
from ztok_rag.codec.finder import WINDOW, AnswerFinder
from ztok_rag.codec.model import ZModel
from ztok_rag.errors import CheckpointError
from ztok_rag.selection.finder import find_chances
from ztok_rag.training.finder import FinderSettings, FinderTrainer, train_finder
from ztok_rag.training.passages import Passage
from ztok_rag.training.questions import PassageSet, find_asked_whole

SMALL = FinderSettings(steps=6, batch=3, lr=2e-3, warmup=2, evaluate_every=3, is_fresh=True)


def sets(count: int = 60) -> list[PassageSet]:
    return [([Passage(text, ((q, (a,)),)) for text, q, a in passages(count)], 1.0)]


def weights(model: ZModel) -> dict[str, torch.Tensor]:
    assert model.finder is not None
    return {name: value.detach() for name, value in model.finder.trained().items()}


def test_the_loss_falls_on_texts_that_are_held_out(tmp_path: Path) -> None:
    model = tiny_model()
    settings = dataclasses.replace(SMALL, steps=36, batch=6, evaluate_every=12)
    assert train_finder(model, sets(), tmp_path, settings, progress=False) == 59
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [line["step"] for line in log] == list(range(1, 37))
    held = [line["held_out_nats"] for line in log if "held_out_nats" in line]
    assert len(held) == 3 and held[-1] < held[0] - 0.5
    finder = model.finder
    assert finder is not None and not finder.training
    assert not any(parameter.requires_grad for parameter in finder.parameters())
    text, question, answer = passages(60)[49]  # held out
    spans = np.array([[i, i + 1] for i in range(len(text))])
    (chances,) = find_chances(finder, question, [text], [spans])
    best = int(chances.argmax())
    assert answer in text[max(0, best - len(answer)) : best + len(answer)]


def test_an_interrupted_run_resumes_exactly(tmp_path: Path) -> None:
    whole = tiny_model()
    train_finder(whole, sets(), tmp_path / "whole", SMALL, progress=False)
    with interrupted(FinderTrainer, after=4):
        train_finder(tiny_model(), sets(), tmp_path / "cut", SMALL, progress=False)
    resumed = tiny_model()
    train_finder(resumed, sets(), tmp_path / "cut", SMALL, progress=False)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    other = dataclasses.replace(SMALL, lr=1e-3)
    with pytest.raises(CheckpointError, match="lr"):
        train_finder(tiny_model(), sets(), tmp_path / "cut", other, progress=False)


def test_windows_hold_the_answer_or_none() -> None:
    long = [
        Passage(" ".join([text] * 4), ((question, (answer,)),))
        for text, question, answer in passages(12)
    ]
    finder = AnswerFinder()
    questions = find_asked_whole(finder.tokenizer, [(long, 2.0)], progress=False)
    assert len(questions) == 12
    drawn = questions.shuffled(np.random.default_rng(0))
    assert len(drawn) == 24 and drawn != questions.shuffled(np.random.default_rng(1))
    trainer = FinderTrainer(finder, questions, SMALL)
    rows = trainer._rows(drawn * 10, np.random.default_rng(0))
    assert max(len(text) for _, text, _ in rows) == WINDOW
    assert min(len(text) for _, text, _ in rows) < WINDOW / 2
    assert 0.05 < np.mean([not places for *_, places in rows]) < 0.3
    names = {answer.lower() for _, _, answer in passages(12)}
    for _, text, places in rows:
        for start, end in places:
            assert finder.tokenizer.decode(text[start:end]).replace(" ", "") in names


def test_the_finder_alone_is_trained_from_the_command_line(tmp_path: Path) -> None:
    tiny = tiny_base()
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    start = tmp_path / "start"
    model = ZModel.create(type(tiny).load(str(tmp_path / "base"), device="cpu"), **SETTINGS)
    model.save_pretrained(start)
    questions = write_questions(tmp_path / "questions.jsonl", 20)
    arguments = [
        *("train", "--finder", "--fresh", "--data", str(questions), "--init", str(start)),
        *("--output", str(tmp_path / "run"), "--device", "cpu", "--finder-steps", "2"),
    ]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    trained = ZModel.from_pretrained(tmp_path / "run" / "checkpoint", device="cpu")
    assert float(weights(trained)["score.weight"].abs().sum()) > 0
    for one, other in zip(model.state(), trained.state(), strict=True):
        assert all(torch.allclose(one[name], other[name], atol=0.02) for name in one)
    text_file = tmp_path / "text.txt"
    text_file.write_text(passages()[0][0])
    nothing = CliRunner().invoke(
        cli.app, [*arguments[:3], "--data", str(text_file), "--init", str(start)]
    )
    assert nothing.exit_code == 1 and "nothing to train on" in str(nothing.exception)
