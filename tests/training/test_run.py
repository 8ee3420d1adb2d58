"""A run from files to a checkpoint, and the commands that start it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import SETTINGS, passages, tiny_base, write_questions
from typer.testing import CliRunner

from ztok_rag import cli
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import READ, ZModel
from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.training.average import average_checkpoints
from ztok_rag.training.held_out import score_answers, score_repeating
from ztok_rag.training.loop import TrainSettings
from ztok_rag.training.passages import read_passages
from ztok_rag.training.relevance import RelevanceSettings
from ztok_rag.training.run import parse_phases, run_training


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny = tiny_base()
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def run(data: list[str], output: Path, base: Path | None, **options: Any) -> Path:
    wanted = {
        "device": "cpu",
        "model_settings": SETTINGS,
        "settings": TrainSettings(steps=3, size=256, lr=3e-3),
        "selector": RelevanceSettings(steps=2, batch=4),
        "progress": False,
        **options,
    }
    return run_training(data, output, base=str(base) if base else None, **wanted)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    questions = write_questions(folder / "questions.jsonl")
    run([str(questions)], folder / "out", base, phases=[["repeat"], ["cloze", "answer"]])
    return folder


def test_every_phase_gives_a_checkpoint(trained: Path) -> None:
    output = trained / "out"
    for name in ("1-repeat/checkpoint", "2-cloze+answer/checkpoint", "checkpoint"):
        compressor = ZCompressor.from_pretrained(output / name, device="cpu")
        (z,) = compressor.compress([passages()[0][0]], 4.0)
        assert compressor.decompress([z]) == [passages()[0][0]]
        assert compressor.reader.generate([["The mill of", z]], max_new_tokens=2)
    code = compressor.model.token_code
    assert code.rarity.min() < 4 < code.rarity.max()  # fitted to the data
    assert len((output / "selector" / "log.jsonl").read_text().splitlines()) == 2
    first = [json.loads(line) for line in (output / "1-repeat" / "log.jsonl").open()]
    assert len(first) == 3 and all(line["repeat"] and line["answer"] is None for line in first)


def test_a_run_that_is_done_is_not_done_again(
    trained: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ZModel.from_pretrained(trained / "out" / "checkpoint", device="cpu").state()
    monkeypatch.setattr("ztok_rag.training.loop.Trainer.train_step", None)
    monkeypatch.setattr("ztok_rag.training.relevance.RelevanceTrainer.train_step", None)
    questions = str(trained / "questions.jsonl")
    run([questions], trained / "out", base, phases=[["repeat"], ["cloze", "answer"]])
    after = ZModel.from_pretrained(trained / "out" / "checkpoint", device="cpu").state()
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_is_adapted_to_documents(trained: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.md").write_text("\n".join(text for text, _, _ in passages(30)))
    start = trained / "out" / "checkpoint"
    folder = run([], tmp_path / "out", None, corpus=[tmp_path / "docs"], init=start)
    (phase,) = (p.name for p in (tmp_path / "out").iterdir() if p.name.startswith("1-"))
    assert phase == "1-cloze+repeat+excerpt"
    model = ZModel.from_pretrained(folder, device="cpu")
    known = ZModel.from_pretrained(start, device="cpu")
    assert model.fingerprint == known.fingerprint  # what was compressed can still be read
    pairs = zip(
        model.base.adapter_parameters(READ).values(),
        known.base.adapter_parameters(READ).values(),
        strict=True,
    )
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_held_out_scores(trained: Path) -> None:
    compressor = ZCompressor.from_pretrained(trained / "out" / "checkpoint", device="cpu")
    some = read_passages(trained / "questions.jsonl")[:5]
    for asks_first in (True, False):
        scores = score_answers(compressor, some, 4.0, asks_first=asks_first)
        assert scores.tokens.shape == (5,) and scores.tokens.min() >= 2
        assert 0 < scores.mean_nats < 12 and 0 <= scores.accuracy <= 1
    scores = score_repeating(compressor, [p.text for p in some], 2.0, tokens=16)
    assert scores.tokens.tolist() == [16] * 5


def test_checkpoints_are_averaged(trained: Path, tmp_path: Path) -> None:
    folders = [trained / "out" / name / "checkpoint" for name in ("1-repeat", "2-cloze+answer")]
    mean = average_checkpoints(folders)
    parts = [ZModel.from_pretrained(folder, device="cpu") for folder in folders]
    own, *others = (list(m.base.adapter_parameters(READ).values())[1] for m in (mean, *parts))
    torch.testing.assert_close(own, (others[0] + others[1]) / 2)
    with pytest.raises(DataError, match="two checkpoints"):
        average_checkpoints(folders[:1])
    with pytest.raises(CheckpointError):
        average_checkpoints([folders[0], tmp_path])


def test_phases_are_parsed() -> None:
    assert parse_phases("repeat, cloze+answer") == [("repeat",), ("cloze", "answer")]
    for text in ("", "repeat,answers"):
        with pytest.raises(DataError, match="repeat, excerpt"):
            parse_phases(text)


def test_the_command_trains(base: Path, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.jsonl")
    arguments = [
        *("train", "--data", f"{questions}:2", "--base", str(base), "--device", "cpu"),
        *("--output", str(tmp_path / "run"), "--steps", "2", "--size", "256", "--rank", "4"),
        *("--slots", "8", "--packer-width", "16", "--rates", "1,4,8", "--before", "0.5"),
        *("--selector-steps", "0", "--phases", "answer"),
    ]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    model = ZModel.from_pretrained(tmp_path / "run" / "checkpoint", device="cpu")
    assert (model.config.slots, model.config.rank, model.config.packer_width) == (8, 4, 16)


def test_odd_data_stop_the_run_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Loaded(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise Loaded

    monkeypatch.setattr("ztok_rag.training.run.BaseLM.load", load)
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "Fine."}\n{"text": NaN}\n', encoding="utf-8")
    arguments = ["train", "--data", str(data), "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(cli.app, arguments)
    assert f"{data}, line 2: NaN is not JSON." == str(done.exception)
    done = CliRunner().invoke(cli.app, [*arguments, "--skip-odd-records"])
    assert isinstance(done.exception, Loaded)
    assert f"left out 1 odd record: {data}, line 2: NaN is not JSON." in caplog.text


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([], "nothing to train on"),
        (["--data", "missing.jsonl"], "cannot read"),
        (["--data", "x", "--before", "2"], "--before"),
        (["--data", "x", "--rates", "0.5"], "--rates"),
        (["--data", "x", "--phases", "dance"], "phases"),
    ],
)
def test_the_command_refuses(arguments: list[str], cause: str, base: Path, tmp_path: Path) -> None:
    common = ["train", "--base", str(base), "--device", "cpu", "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(cli.app, [*common, *arguments])
    assert done.exit_code != 0
    assert cause in str(done.exception)
