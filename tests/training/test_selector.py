"""Training of the selector: what it is asked, that it learns, resumes exactly, and alone."""

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
from ztok_rag.codec.model import ZModel
from ztok_rag.errors import CheckpointError
from ztok_rag.training.labels import find_paraphrase
from ztok_rag.training.passages import Passage
from ztok_rag.training.questions import PassageSet, find_asked
from ztok_rag.training.relevance import RelevanceSettings, RelevanceTrainer, train_relevance

SMALL = RelevanceSettings(steps=8, batch=6, lr=3e-3, evaluate_every=4)


def sets(count: int = 60) -> list[PassageSet]:
    return [([Passage(text, ((q, (a,)),)) for text, q, a in passages(count)], 1.0)]


def weights(model: ZModel) -> dict[str, torch.Tensor]:
    assert model.selector is not None
    return model.selector.state_dict()


def test_the_loss_falls_on_texts_that_are_held_out(tmp_path: Path) -> None:
    model = tiny_model()
    settings = dataclasses.replace(SMALL, steps=60)
    assert train_relevance(model, sets(), tmp_path, settings, progress=False) == 59
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [line["step"] for line in log] == list(range(1, 61))
    held = [line["held_out_nats"] for line in log if "held_out_nats" in line]
    assert len(held) == 15 and held[-1] < held[0] - 0.5
    assert not model.selector.training and not any(
        parameter.requires_grad for parameter in model.selector.parameters()
    )


def test_an_interrupted_run_resumes_exactly(tmp_path: Path) -> None:
    whole = tiny_model()
    train_relevance(whole, sets(), tmp_path / "whole", SMALL, progress=False)
    with interrupted(RelevanceTrainer, after=5):
        train_relevance(tiny_model(), sets(), tmp_path / "cut", SMALL, progress=False)
    resumed = tiny_model()
    train_relevance(resumed, sets(), tmp_path / "cut", SMALL, progress=False)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    other = dataclasses.replace(SMALL, lr=1e-3)
    with pytest.raises(CheckpointError, match="lr"):
        train_relevance(tiny_model(), sets(), tmp_path / "cut", other, progress=False)
    with pytest.raises(CheckpointError, match="questions"):
        train_relevance(tiny_model(), sets(40), tmp_path / "cut", SMALL, progress=False)


def test_long_passages_are_cut_and_the_answer_is_found_in_its_part() -> None:
    model = tiny_model()
    texts = [text for text, _, _ in passages(6)]
    _, question, answer = passages(6)[4]
    long = Passage(" ".join(texts), ((question, (answer,)), ("Is it a mill?", ("Yes",))))
    questions = find_asked(model, [([long], 1.0)], 120, progress=False)
    ((asked,),) = (own for own, _ in questions.asked)
    assert asked.question == question and asked.texts == (0, len(questions.sources))
    assert len(questions.sources) > 3
    assert all(len(source.ids) <= 120 for source in questions.sources)
    tokenizer = model.base.tokenizer
    for text, tokens in asked.places:
        assert answer in tokenizer.decode(questions.sources[text].ids[tokens])


def test_a_share_says_how_often_questions_are_drawn() -> None:
    questions = find_asked(tiny_model(), [(sets()[0][0], 2.5)], 256, progress=False)
    drawn = questions.epoch(6, np.random.default_rng(0))
    assert all(1 <= len(batch) <= 6 for batch in drawn)
    assert 2.2 * len(questions) < sum(map(len, drawn)) < 2.8 * len(questions)
    questions = find_asked(tiny_model(), [(sets()[0][0], 0.02)], 256, progress=False)
    epochs = [questions.epoch(6, np.random.default_rng(seed)) for seed in range(100)]
    assert 10 < sum(map(len, epochs)) < 50  # of 20 at a time


def test_what_stands_in_a_text_in_other_words_is_found() -> None:
    text = (
        "The sea was calm. In spring the old keeper was teaching his daughters to sail. It rained."
    )
    span = find_paraphrase(text, ["The keeper taught his daughter sailing"])
    assert span is not None
    assert text[slice(*span)] == "keeper was teaching his daughters to sail"
    assert find_paraphrase(text, ["A baker sold bread"]) is None
    assert find_paraphrase(text, ["the", ""]) is None


def test_the_selector_alone_is_trained_from_the_command_line(tmp_path: Path) -> None:
    tiny = tiny_base()
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    start = tmp_path / "start"
    ZModel.create(
        type(tiny).load(str(tmp_path / "base"), device="cpu"), **SETTINGS
    ).save_pretrained(start)
    questions = write_questions(tmp_path / "questions.jsonl")
    arguments = [
        *("train", "--selector", "--data", str(questions), "--init", str(start)),
        *("--output", str(tmp_path / "run"), "--device", "cpu", "--selector-steps", "3"),
    ]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    known = ZModel.from_pretrained(start, device="cpu")
    trained = ZModel.from_pretrained(tmp_path / "run" / "checkpoint", device="cpu")
    assert not torch.equal(weights(known)["score.weight"], weights(trained)["score.weight"])
    for one, other in zip(known.state(), trained.state(), strict=True):
        same = [n for n in one if not n.startswith("selector.")]
        assert all(torch.equal(one[name], other[name]) for name in same)
    text_file = tmp_path / "text.txt"
    text_file.write_text(passages()[0][0])
    nothing = CliRunner().invoke(
        cli.app, [*arguments[:2], "--data", str(text_file), "--init", str(start)]
    )
    assert nothing.exit_code == 1 and "nothing to train on" in str(nothing.exception)
    both = CliRunner().invoke(cli.app, [*arguments, "--write"])
    assert both.exit_code == 1 and "one of them" in str(both.exception)
