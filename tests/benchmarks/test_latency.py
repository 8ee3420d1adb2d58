"""`benchmarks/latency.py`: every part on the real default model, with very short texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PASSAGE

import latency
from costs.corpus import make_corpus
from result_rows import PHASES
from ztok_rag import ZCompressor
from ztok_rag.errors import DataError

MILL = "The mill on Reed Lane was built in 1902. It ground oats for the villages along the river. "
RECORDS: list[dict[str, Any]] = [
    {"context": PASSAGE, "question": "Who was the last keeper?", "answers": ["Tomas Berg"]},
    {"context": PASSAGE, "question": "When was the lighthouse built?", "answers": ["1873"]},
    {"text": 40 * MILL},
    {"document": "The ferry to Elm Island leaves at nine, and again at noon on Sundays."},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


@pytest.mark.usefixtures("tokenizer_left_as_it_was")
def test_all_parts(
    data: Path,
    tmp_path: Path,
    compressor: ZCompressor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(latency, "CHUNK_TOKENS", 24)
    monkeypatch.setattr(latency, "load_compressor", lambda options: compressor)
    # So that 900 tokens are too many as text.
    monkeypatch.setattr(type(compressor.model.base), "max_positions", 900)
    output = tmp_path / "out"
    settings = "--rates 4 --lengths 24,900 --k 1 --repeats 1 --windows 2 --chunks 2 --answers 1"
    latency.main(
        ["--data", str(data), "--output", str(output), "--max-new-tokens", "2", *settings.split()]
    )
    assert "tokens_per_second" in capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert results["benchmark"] == "latency"
    assert all((output / f"{part}.png").stat().st_size > 1000 for part in latency.PARTS)
    scores = {
        (row["task"], row["arm"], row["metric"]): row["score"]
        for row in results["rows"]
        if row["p10"] <= row["p90"]
    }
    assert len(scores) == len(results["rows"])

    for arm, metric in (("base", "forward"), ("base", "prefill"), ("ztok", "compress")):
        assert scores["compress", arm, f"{metric}_tokens_per_second"] > 0
    share = scores["compress", "ztok", "share_of_prefill"] / 100
    assert share == pytest.approx(
        scores["compress", "ztok", "compress_tokens_per_second"]
        / scores["compress", "base", "prefill_tokens_per_second"],
        rel=1e-3,
    )

    phases = [f"{phase}_ms" for phase in PHASES]
    for way in (("query raw", "text-reader"), ("query cold", "ztok"), ("query warm", "ztok")):
        parts = sum(scores[(*way, phase)] for phase in phases)
        assert parts == pytest.approx(scores[(*way, "answer_ms")], rel=1e-3)
    compressed = {
        row["task"]: row["compressed"] for row in results["rows"] if row["metric"] == "answer_ms"
    }
    assert compressed == {"query raw": 0, "query cold": 1, "query warm": 0}

    assert scores["context 24", "text-reader", "readable"] == 100
    assert scores["context 900", "text-reader", "readable"] == 0
    assert ("context 900", "text-reader", "ttft_ms") not in scores
    assert scores["context 900", "ztok", "ttft_ms"] > 0
    assert ("context 900", "ztok", "answered") in scores

    stored = {arm: score for (task, arm, _), score in scores.items() if task == "bytes"}
    assert stored["embedding-fp16"] == 2 * compressor.model.base.hidden_size
    assert stored["kv-cache-fp16"] == 23_040
    assert 0 < stored["ztok"] < stored["embedding-fp16"]


def test_chunks_are_the_text_in_order(compressor: ZCompressor) -> None:
    corpus = make_corpus(RECORDS, compressor.tokenizer, 100, 24)
    assert corpus.text.startswith("".join(corpus.chunks))
    assert len(corpus.chunks) > 3
    assert all(12 <= compressor.count_tokens(chunk) <= 24 for chunk in corpus.chunks)
    assert compressor.count_tokens(corpus.head(50)) == 50
    assert [asked.question for asked in corpus.asked(len(PASSAGE), 3)] == [
        "Who was the last keeper?",
        "When was the lighthouse built?",
        "Who was the last keeper?",
    ]
    assert "lighthouse" in corpus.asked(10, 1)[0].question


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        ([{"title": "no text"}], [], "line 1: it has no text in a field 'context'"),
        (RECORDS, ["--parts", "speed"], "unknown part 'speed'"),
        (RECORDS, ["--k", "9", "--chunks", "3"], "--k 9 needs at least as many --chunks"),
        (RECORDS, ["--parts", "bytes"], "tokens of text and 16640 are needed"),
    ],
)
def test_errors(
    lines: list[dict[str, Any]],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    compressor: ZCompressor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(latency, "load_compressor", lambda options: compressor)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        latency.main(["--data", str(path), "--output", str(tmp_path), *arguments])
