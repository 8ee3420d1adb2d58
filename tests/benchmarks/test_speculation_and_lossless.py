"""`benchmarks/speculation.py` and `benchmarks/lossless.py` on the real default model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import BAKERY, PASSAGE

import lossless
import speculation
from costs import corpus
from ztok_rag import ZCompressor
from ztok_rag.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "data.jsonl"
    path.parent.mkdir()
    record = {"context": PASSAGE, "question": "Who was the last keeper?"}
    path.write_text(json.dumps(record) + "\n")
    return path


def test_speculation(
    data: Path, tmp_path: Path, compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculation, "load_compressor", lambda options: compressor)
    monkeypatch.setattr(speculation, "BATCH_SIZES", (1,))
    ways = {way: speculation.WAYS[way] for way in ("one by one", "lookup", "head")}
    monkeypatch.setattr(speculation, "WAYS", ways)
    monkeypatch.setattr(speculation, "LONG", 12)
    monkeypatch.setattr(corpus, "MIDDLING", (20, 400))
    output = tmp_path / "out"
    files = ["--data", str(data), "--summaries", str(data), "--output", str(output)]
    speculation.main([*files, "--limit", "1", "--max-new-tokens", "6"])
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert len({row["task"] for row in rows}) == 6
    score = {(row["task"], row["arm"], row["metric"]): row["score"] for row in rows}
    task = "repeat, 1 at once"
    assert score[task, "lookup", "passes"] < score[task, "one by one", "passes"]
    assert {row["score"] for row in rows if row["metric"] == "same"} == {100.0}
    assert any(row["metric"].startswith("accepted_of_") for row in rows)
    with pytest.raises(DataError, match="smaller --limit"):
        speculation.main([*files, "--limit", "2"])


def test_lossless(
    data: Path, tmp_path: Path, compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossless, "load_compressor", lambda options: compressor)
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": BAKERY}) + "\n")
    output = tmp_path / "out"
    files = ["--data", f"{data},{tmp_path / 'other.jsonl'}", "--output", str(output)]
    lossless.main([*files, "--characters", "200,100"])
    rows = json.loads((output / "results.json").read_text())["rows"]
    average = {
        row["arm"]: row["score"]
        for row in rows
        if row["task"] == "average" and row["metric"] == "bits_per_character"
    }
    assert average["cross-entropy"] < average["llm"] < average["xz -9"]
    assert average["llm"] < average["static code"]
    with pytest.raises(DataError, match="smaller --characters"):
        lossless.main([*files, "--characters", "9999"])
