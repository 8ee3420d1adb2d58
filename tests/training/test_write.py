"""Training of the write head: it learns, resumes exactly, and becomes part of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_base import SETTINGS, interrupted, passages, tiny_base, tiny_model, write_questions
from typer.testing import CliRunner

from ztok_rag import ZGenerator, cli
from ztok_rag.codec.model import READ, ZModel
from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.training.data import TrainingData, prepare_data
from ztok_rag.training.passages import find_data
from ztok_rag.training.write import WriteTrainer, train_write
from ztok_rag.training.write_states import WriteSettings, collect_states, make_window

SMALL = WriteSettings(
    positions=3000, window=48, steps=8, batch=64, width=24, vocabulary=200, evaluate_every=4
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("data")
    files = find_data([str(write_questions(folder / "questions.jsonl"))])
    return prepare_data(files, tiny_base().tokenizer, folder, progress=False)


def weights(model: ZModel) -> dict[str, torch.Tensor]:
    assert model.writer is not None
    return model.writer.state_dict()


def test_states_are_those_of_the_base_and_of_the_reader(data: TrainingData, tmp_path: Path) -> None:
    model = tiny_model()
    for parameter in model.base.adapter_parameters(READ).values():
        torch.nn.init.normal_(parameter, std=0.3)  # so that the reader is not the base
    found = collect_states(model, data, tmp_path, SMALL, progress=False)
    assert len(found.ids) >= SMALL.positions
    at = 0
    for number in range(4):
        window = make_window(model, data, SMALL, number)
        length = len(window.ids)
        assert found.ids[at : at + length].tolist() == window.ids.tolist()
        text = model.base.embed(torch.from_numpy(window.ids))
        inputs = torch.cat([model.embed_codes(window.codes), text]).unsqueeze(0)
        with torch.inference_mode(), model.base.adapter(window.adapter):
            scores = model.base.model(inputs_embeds=inputs).logits[0]
        scores = scores[len(window.codes) - 1 : -1]
        torch.testing.assert_close(found.masses[at : at + length], scores.logsumexp(-1))
        assert found.best[at : at + length].tolist() == scores.argmax(-1).tolist()
        state = found.states[at : at + length].float()
        torch.testing.assert_close(model.base.head(state), scores, atol=0.05, rtol=0.01)
        at += length
    kinds = [make_window(model, data, SMALL, number) for number in range(4)]
    assert [window.adapter for window in kinds] == [None, None, READ, READ]
    assert [len(window.codes) > 1 for window in kinds] == [False, False, False, True]
    # Chains stay within their window, and those held out are of other windows.
    assert not set(found.starts.tolist()) & set(found.held.tolist())


def test_the_loss_falls_and_the_head_writes(data: TrainingData, tmp_path: Path) -> None:
    model = tiny_model()
    settings = dataclasses.replace(SMALL, steps=60, lr=0.01)
    train_write(model, data, tmp_path, settings, progress=False)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [line["step"] for line in log] == list(range(1, 61))
    assert log[-1]["nats"] < log[0]["nats"] - 0.3
    assert len(log[-1]["held_out_agreement"]) == settings.depth
    assert log[-1]["positions"] == 60 * 64
    table = weights(model)["agreement"]
    assert (table.diff() >= 0).all() and 0 <= float(table[0]) <= float(table[-1]) <= 1
    z = ZGenerator(model).generate(passages()[0][0], max_new_tokens=8, confidence=0.0)
    assert z.source_tokens <= 8


def test_an_interrupted_run_resumes_exactly(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_model()
    train_write(whole, data, tmp_path / "whole", SMALL, progress=False)
    with interrupted(WriteTrainer, after=5):
        train_write(tiny_model(), data, tmp_path / "cut", SMALL, progress=False)
    with monkeypatch.context() as patch:  # the states are there already
        patch.setattr("ztok_rag.training.write_states._read_windows", None)
        resumed = tiny_model()
        train_write(resumed, data, tmp_path / "cut", SMALL, progress=False)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").open()]
        for name in ("whole", "cut")
    ]
    for line in (*logs[0], *logs[1]):
        del line["seconds"]
    assert logs[0] == logs[1]


def test_other_settings_and_damage_are_refused(data: TrainingData, tmp_path: Path) -> None:
    short = dataclasses.replace(SMALL, steps=1)
    train_write(tiny_model(), data, tmp_path, short, progress=False)
    with pytest.raises(CheckpointError, match=r"other settings \(width\)"):
        other = dataclasses.replace(short, width=8)
        train_write(tiny_model(), data, tmp_path, other, progress=False)
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        train_write(tiny_model(), data, tmp_path, short, progress=False)
    with pytest.raises(DataError, match="too little text"):
        long = dataclasses.replace(short, window=10**6)
        collect_states(tiny_model(), data, tmp_path / "other", long, progress=False)


def test_the_command_gives_a_checkpoint_its_head(tmp_path: Path) -> None:
    base = tiny_base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    start = tmp_path / "start"
    ZModel.create(tiny_base(), **SETTINGS).save_pretrained(start)
    questions = write_questions(tmp_path / "questions.jsonl")
    arguments = [
        *("train", "--write", "--data", str(questions), "--init", str(start)),
        *("--base", str(tmp_path / "base"), "--device", "cpu", "--output", str(tmp_path / "run")),
        *("--steps", "2", "--write-positions", "1000"),
    ]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    trained = ZModel.from_pretrained(
        tmp_path / "run" / "checkpoint", base=tmp_path / "base", device="cpu"
    )
    assert trained.writer is not None
    before = ZModel.from_pretrained(start, base=tmp_path / "base", device="cpu")
    assert before.writer is None and before.fingerprint == trained.fingerprint
    for one, other in zip(before.state(), trained.state(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
