"""The training loop on tiny random bases: it learns, resumes exactly, and shares out its work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_tiny
import torch
from safetensors.torch import load_file
from tiny_base import LAYOUTS, SETTINGS, make_rows, tiny_base, tiny_model, write_questions

from ztok_rag.codec.model import READ, ZModel
from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.training.batches import Batch, RowStream
from ztok_rag.training.loop import Trainer, TrainSettings
from ztok_rag.training.objective import Objective, target_nats
from ztok_rag.training.rows import SHARES, Kind

KINDS = [kind.name.lower() for kind in Kind]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")


def trainer(model: ZModel, questions: Path, output: Path, **settings: Any) -> Trainer:
    rows = make_rows(model, questions, output.parent / "data")
    wanted = {"steps": 6, "size": 256, "lr": 3e-3, "warmup": 2, **settings}
    return Trainer(model, rows, SHARES, TrainSettings(**wanted), output)


def read_log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").open()]


def a_batch(model: ZModel, questions: Path, folder: Path, shares: dict[str, float]) -> Batch:
    rows = make_rows(model, questions, folder / "data")
    return next(RowStream(rows, shares, [192, 256], 512, [0]))


VOCABULARIES = {"qwen3": 150_000, "gemma3": 262_144}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_learns(layout: str, tmp_path: Path) -> None:
    model = tiny_model(layout, VOCABULARIES.get(layout, 2000))
    questions = write_questions(tmp_path / "few.jsonl", 6)
    batch = a_batch(model, questions, tmp_path, {"answer": 1.0})
    objective = Objective(model)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    nats, pointer = [], []
    for _ in range(8):
        losses = objective(batch)
        torch.autograd.backward(losses.nats.mean() + losses.pointer.mean())
        assert all(p.grad is not None for p in objective.parameters())
        optimizer.step()
        optimizer.zero_grad()
        nats.append(float(losses.nats.detach().mean()))
        pointer.append(float(losses.pointer.detach().mean()))
    assert nats[-1] < nats[0] - 0.1
    assert pointer[-1] < pointer[0]

    # What was trained is what the adapter does beside the layers.
    objective.publish()
    inputs = model.embed_codes(batch.codes).view(-1, batch.length, model.base.hidden_size)
    with torch.no_grad(), model.base.adapter(READ):
        states = model.base.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
        alone, _ = target_nats(model, states.flatten(0, 1)[batch.at], batch.target)
        trained = objective(batch).nats
    torch.testing.assert_close(alone, trained, atol=2e-4, rtol=2e-4)
    model.save_pretrained(tmp_path / "checkpoint")
    again = ZModel.from_pretrained(tmp_path / "checkpoint", base=tiny_base_of(layout))
    assert again.fingerprint == model.fingerprint


def tiny_base_of(layout: str) -> Any:
    return tiny_base(layout, VOCABULARIES.get(layout, 2000))


def test_a_base_in_bf16_learns_in_fp32(questions: Path, tmp_path: Path) -> None:
    base = tiny_base()
    base.model.to(torch.bfloat16)
    model = ZModel.create(base, **SETTINGS)
    run = trainer(model, questions, tmp_path / "run", steps=30, size=512)
    run.train(progress=False)
    assert {p.dtype for p in run.parameters.values()} == {torch.float32}
    assert_learned(read_log(tmp_path / "run"))


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_the_gradient_of_target_nats_is_that_of_cross_entropy(cap: float) -> None:
    model = tiny_model("gemma2" if cap else "llama")
    if cap:
        model.base.model.config.final_logit_softcapping = cap
    torch.manual_seed(0)
    states = torch.randn(20, model.base.hidden_size, requires_grad=True)
    target, weight = torch.randint(2000, (20,)), torch.rand(20)
    nats, right = target_nats(model, states, target)
    (slope,) = torch.autograd.grad((nats * weight).sum(), states)
    logits = states @ model.base.head.weight.T  # type: ignore[operator]
    if cap:
        logits = cap * torch.tanh(logits / cap)
    wanted = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(nats, wanted)
    assert torch.equal(right, logits.argmax(-1) == target)
    torch.testing.assert_close(slope, torch.autograd.grad((wanted * weight).sum(), states)[0])


def test_what_fills_rows_up_changes_nothing(questions: Path, tmp_path: Path) -> None:
    model = tiny_model()
    batch = a_batch(model, questions, tmp_path, SHARES)
    objective = Objective(model)
    before = objective(batch).nats
    predicts = torch.zeros(len(batch.codes), dtype=torch.long)
    predicts[batch.at] = batch.at % batch.length
    last = predicts.view(-1, batch.length).amax(1)
    filler = (torch.arange(batch.length) > last.unsqueeze(1)).flatten()
    assert filler.any()
    batch.codes[filler, 0] = 77
    torch.testing.assert_close(objective(batch).nats, before)


def test_training_lowers_the_loss(questions: Path, tmp_path: Path) -> None:
    trainer(tiny_model(), questions, tmp_path / "run", steps=30, size=512).train(progress=False)
    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, 31))
    assert_learned(log)
    trained = ZModel.from_pretrained(tmp_path / "run" / "checkpoint", base=tiny_base())
    assert trained.base.adapter_parameters(READ)


def assert_learned(log: list[dict[str, Any]]) -> None:
    """The loss at the end is below that at the start."""
    means = [np.mean([line[k] for k in KINDS if line[k] is not None]) for line in log]
    assert np.mean(means[-6:]) < np.mean(means[:6]) - 0.2


@pytest.mark.parametrize("how", ["kill", "ctrl-c"])
def test_a_run_resumes_exactly(
    how: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tiny_model(), questions, tmp_path / "whole").train(progress=False)
    original = Trainer.train_step

    def interrupted(self: Trainer, batches: Iterator[Batch]) -> dict[str, Any]:
        if self.step == 4:
            assert how == "kill"
            raise MemoryError
        if how == "ctrl-c" and self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    minutes = 0.0 if how == "kill" else 5.0  # after each step, or by the interruption alone
    with pytest.raises((MemoryError, KeyboardInterrupt)):
        trainer(tiny_model(), questions, tmp_path / "parts", save_minutes=minutes).train(
            progress=False
        )
    monkeypatch.undo()
    assert json.loads((tmp_path / "parts" / "state.json").read_text())["step"] == 4
    ZModel.from_pretrained(tmp_path / "parts" / "checkpoint", base=tiny_base())
    with pytest.raises(CheckpointError, match="other settings \\(lr\\)"):
        trainer(tiny_model(), questions, tmp_path / "parts", lr=1e-3).train(progress=False)
    resumed = trainer(tiny_model(), questions, tmp_path / "parts")
    resumed.train(progress=False)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    resumed.train(progress=False)  # nothing is left to do
    assert resumed.step == 6


def assert_same(one: Path, other: Path) -> None:
    """Two runs have the same log, but for times, and the same weights and moments."""
    logs = [[{**line, "seconds": 0} for line in read_log(path)] for path in (one, other)]
    assert logs[0] == logs[1]
    states = [
        load_file(next(path.glob("state-*")) / "weights.safetensors") for path in (one, other)
    ]
    assert states[0].keys() == states[1].keys()
    for name in states[0].keys() - {"rng"}:
        assert torch.equal(states[0][name], states[1][name]), name


def test_a_damaged_state_is_an_error(questions: Path, tmp_path: Path) -> None:
    trainer(tiny_model(), questions, tmp_path / "run", steps=2).train(progress=False)
    (folder,) = (tmp_path / "run").glob("state-*")
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        trainer(tiny_model(), questions, tmp_path / "run", steps=2).train(progress=False)


def test_a_loss_that_is_not_finite_ends_training(questions: Path, tmp_path: Path) -> None:
    broken = trainer(tiny_model(), questions, tmp_path / "run")
    with torch.no_grad():
        next(iter(broken.objective.up.values())).fill_(float("nan"))
    with pytest.raises(DataError, match="lower --lr"):
        broken.train(progress=False)
    assert not (tmp_path / "run" / "state.json").exists()


def test_batches_must_suit_the_devices(questions: Path, tmp_path: Path) -> None:
    class Two:
        num_processes, process_index = 2, 0

    model = tiny_model()
    rows = make_rows(model, questions, tmp_path / "data")
    with pytest.raises(DataError, match="2 devices"):
        Trainer(model, rows, SHARES, TrainSettings(per_step=3), tmp_path, accelerator=Two())  # type: ignore[arg-type]


def test_two_devices_train_as_one(questions: Path, tmp_path: Path) -> None:
    run_tiny.train(questions, tmp_path / "one", 8)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", run_tiny.__file__, questions, tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert len(one) == len(two) == 8
    for name in (*KINDS, "pointer", "found", "lr", "positions"):
        values = [[line[name] or 0.0 for line in log] for log in (one, two)]
        np.testing.assert_allclose(*values, rtol=1e-3, err_msg=name)
