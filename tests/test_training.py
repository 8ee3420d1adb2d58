"""The trainer on the real base: it learns, holds its schedule, and resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import PASSAGE
from safetensors.torch import load_file

from ztok_rag import CheckpointError, DataError, ZCompressor
from ztok_rag.base import BaseLM
from ztok_rag.prompts import QA_TEMPLATE
from ztok_rag.training.data import IGNORE, BatchSettings, PackedBatches, pack, read_passages
from ztok_rag.training.run import load_data, run_training
from ztok_rag.training.trainer import TrainSettings

QUESTIONS = [
    ("In what year was the lighthouse built?", "1873"),
    ("Who built the lighthouse?", "Marta Lindqvist"),
    ("Who was the last keeper?", "Tomas Berg"),
]
SMALL = {"rank": 4, "compressor_layers": 2}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [
        {"context": PASSAGE, "question": question, "answers": [answer]}
        for question, answer in QUESTIONS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(steps: int) -> TrainSettings:
    return TrainSettings(
        steps=steps, text_steps=1, ramp_steps=0, rates=(4.0,), warmup=1, lr=2e-3, gate_every=2
    )


BATCH = BatchSettings(batch_tokens=200, templates=(QA_TEMPLATE,), reconstruct=0.5, drop_context=0.0)


def train(records: Path, output: Path, steps: int) -> Path:
    return run_training(
        [str(records)],
        output,
        device="cpu",
        model_settings=SMALL,
        batch_settings=BATCH,
        settings=settings(steps),
        progress=False,
    )


def test_loss_falls_and_a_killed_run_resumes_exactly(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(records, tmp_path / "whole", 6)
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert [line["rate"] for line in log] == [1.0] + [4.0] * 5
    assert log[-1]["answer"] < log[1]["answer"]

    from ztok_rag.training import trainer

    original = trainer.Trainer.train_step

    def killed_at_three(self: trainer.Trainer) -> dict[str, object]:
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "train_step", killed_at_three)
    with pytest.raises(KeyboardInterrupt):
        train(records, tmp_path / "parts", 6)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="other settings"):
        train(records, tmp_path / "parts", 7)
    parts = train(records, tmp_path / "parts", 6)
    for name in ("heads", "compress", "read"):
        a = load_file(whole / f"{name}.safetensors")
        b = load_file(parts / f"{name}.safetensors")
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 6

    trained = ZCompressor.from_pretrained(whole, device="cpu")
    assert trained.fingerprint != ZCompressor.from_pretrained(device="cpu").fingerprint


def test_branches_see_the_prefix_and_themselves_only(records: Path) -> None:
    base = BaseLM.load(device="cpu")
    batches = PackedBatches(read_passages(records), base.tokenizer, BATCH, seed=1)
    examples, source_tokens = batches[0]
    assert source_tokens == len(batches.sources[0])
    windows = iter(
        [base.embed(torch.tensor(p.ids)) for e in examples for p in e.prefix if hasattr(p, "ids")]
    )
    packed = pack(examples, base.embed, windows, batches.repeat)
    base.add_adapter("read", rank=4)
    with torch.no_grad(), base.adapter("read"):
        together = base.decoder(
            inputs_embeds=packed.embeddings,
            attention_mask=packed.mask,
            position_ids=packed.positions,
        ).last_hidden_state
        start = sum(len(p.ids) if hasattr(p, "ids") else len(p) for p in examples[0].prefix)
        first = len(examples[0].branches[0][0]) + len(examples[0].branches[0][1]) - 1
        second = len(examples[0].branches[1][0]) + len(examples[0].branches[1][1]) - 1
        begin = start + first
        alone = torch.cat(
            [packed.embeddings[:, :start], packed.embeddings[:, begin : begin + second]], dim=1
        )
        apart = base.decoder(inputs_embeds=alone).last_hidden_state
    torch.testing.assert_close(
        together[:, begin : begin + second], apart[:, start:], atol=2e-2, rtol=2e-2
    )
    labels = packed.labels[0][packed.labels[0] != IGNORE].tolist()
    assert labels == [token for _, target in examples[0].branches for token in target]


def test_batches_depend_on_seed_and_index_alone(records: Path) -> None:
    tokenizer = BaseLM.load(device="cpu").tokenizer
    passages = read_passages(records)
    one, two = (PackedBatches(passages, tokenizer, BATCH, seed=7) for _ in range(2))
    two[5], two[1]
    assert one[3] == two[3] and one[0] != one[1]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"text": ""}',
        '{"question": "b"}',
        '{"context": "a"  "b"}',
        '{"context": "a", "question": "b"}',
        '{"context": "a", "question": "b", "answers": []}',
    ],
)
def test_malformed_record_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2"):
        read_passages(path)


def test_plain_text_folders_and_shares(tmp_path: Path, records: Path) -> None:
    (tmp_path / "notes.txt").write_text("One paragraph.\n\nAnother.\n")
    assert [p.text for p in load_data([str(tmp_path / "notes.txt")], 0)] == [
        "One paragraph.",
        "Another.",
    ]
    assert len(load_data([str(tmp_path)], 0)) == 3
    assert len(load_data([f"{tmp_path / 'notes.txt'}:0.5"], 0)) == 1
    for share in ("0", "2", "x"):
        with pytest.raises(DataError, match="share"):
            load_data([f"{tmp_path / 'notes.txt'}:{share}"], 0)
    with pytest.raises(DataError, match="cannot read"):
        load_data([str(tmp_path / "missing.jsonl")], 0)
