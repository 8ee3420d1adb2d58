"""The task `writing` of `ztok eval`, on the real default model with very short texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import PASSAGE

from ztok_rag import ZCompressor
from ztok_rag.codec.write_head import WriteHead
from ztok_rag.errors import CheckpointError
from ztok_rag.evaluation.checkpoint import EvalSettings, evaluate_checkpoint
from ztok_rag.evaluation.datasets import DEFAULT_TASKS, WRITING, read_datasets
from ztok_rag.evaluation.writing import base_nats


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps({"text": PASSAGE}) + "\n")
    return path


SETTINGS = EvalSettings(max_text_tokens=24)


def test_writing_is_scored(compressor: ZCompressor, texts: Path, tmp_path: Path) -> None:
    datasets = read_datasets([texts], [WRITING])
    rows, note = evaluate_checkpoint(
        compressor, datasets, tmp_path / "out", SETTINGS, progress=False
    )
    assert "1 texts written" in note
    score = {(row.arm, row.metric): row.score for row in rows}
    assert {row.task for row in rows} == {f"{tmp_path.name}/notes writing"}
    shares = {m: s for (_, m), s in score.items() if m.startswith("z_tokens_of_")}
    assert sum(shares.values()) == pytest.approx(100)
    mean = sum(int(m.rsplit("_", 1)[1]) * share / 100 for m, share in shares.items())
    assert score["z-space", "tokens_per_z_token"] == pytest.approx(mean)
    assert score["z-space", "tokens_per_z_token"] > 1
    assert 0 < score["z-space", "entropy_slot_2"] < 9
    assert score["text-space", "nats_per_token"] < score["z-space", "nats_per_token"] + 0.5
    assert not {"qa", "reconstruction"} & {row.benchmark for row in rows}


def test_it_is_run_only_where_it_is_named(texts: Path) -> None:
    assert WRITING not in DEFAULT_TASKS
    assert WRITING not in read_datasets([texts])[0].tasks


def test_it_needs_a_write_head(compressor: ZCompressor, texts: Path, tmp_path: Path) -> None:
    writer = compressor.model.writer
    assert isinstance(writer, WriteHead)
    compressor.model.set_writer(None)
    try:
        with pytest.raises(CheckpointError, match="ztok train --write"):
            datasets = read_datasets([texts], [WRITING])
            evaluate_checkpoint(compressor, datasets, tmp_path / "out", SETTINGS, progress=False)
    finally:
        compressor.model.set_writer(writer)


def test_nats_of_the_base_do_not_depend_on_how_the_text_is_cut(compressor: ZCompressor) -> None:
    ids = compressor.tokenize([PASSAGE])[0].ids
    before = compressor.tokenizer.decode(ids[:10])
    whole = base_nats(compressor, ids)
    assert np.allclose(whole[10:], base_nats(compressor, ids[10:], before), atol=1e-3)
