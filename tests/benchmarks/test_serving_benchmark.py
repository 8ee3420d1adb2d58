"""`benchmarks/serving.py` and `queries.py`, small, and the sections that show their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_index.core.query_engine import RetrieverQueryEngine

import queries
import serving
from figures import SECTIONS
from result_rows import Results
from tables.markdown import Place
from tests.training.tiny_base import tiny_model, write_questions
from ztok_rag import ZCompressor, ZtokError
from ztok_rag.errors import DataError

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")


def test_many_askers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = ZCompressor(tiny_model())
    monkeypatch.setattr(serving, "load_compressor", lambda options: compressor)
    output = tmp_path / "results" / "serving"
    data = write_questions(tmp_path / "data.jsonl", 12)
    files = ["--data", str(data), "--output", str(output), "--max-new-tokens", "6"]
    serving.main([*files, "--limit", "12", "--askers", "1,6"])
    rows = json.loads((output / "results.json").read_text())["rows"]
    score = {(row["arm"], row["k"], row["metric"]): row["score"] for row in rows}
    for arm in ("ztok", "text-reader"):
        for askers in (1, 6):
            assert score[arm, askers, "same"] == 100
            assert score[arm, askers, "answers_per_second"] > 0
        assert score[arm, 1, "answers_per_pass"] == 1 < score[arm, 6, "answers_per_pass"]
    ztok, text = (next(r for r in rows if r["arm"] == arm) for arm in ("ztok", "text-reader"))
    assert ztok["context_tokens"] < text["context_tokens"]

    place = Place(tmp_path / "docs" / "benchmarks.md", tmp_path / "docs")
    body = SECTIONS["serving"].make(Results.load(tmp_path / "results"), place)
    assert "![Answers per second by askers](serving.png)" in body
    assert (tmp_path / "docs" / "serving.png").stat().st_size > 1000
    assert body.count("| 100 |") == 2 and body.count("| **100** |") == 2

    with pytest.raises(DataError, match="smaller --limit"):
        serving.main([*files, "--limit", "13"])
    with pytest.raises(ZtokError, match="1 of 2 answers"):
        serving.check(["a", "b"], ["a", "c"], compressor)


def test_many_queries(
    tmp_path: Path, compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "load_compressor", lambda options: compressor)
    monkeypatch.setattr(compressor.reader.batcher, "max_rows", 16)
    output = tmp_path / "results" / "queries"
    data = write_questions(tmp_path / "data.jsonl", 3)
    files = ["--data", str(data), "--output", str(output), "--max-new-tokens", "2"]
    queries.main([*files, "--distinct", "3", "--askers", "8", "--max-batch", "4"])
    rows = json.loads((output / "results.json").read_text())["rows"]
    score = {row["metric"]: row["score"] for row in rows}
    assert score["same"] == 100 and {row["k"] for row in rows} == {8}
    assert 1 < score["answers_per_pass"] <= 4
    assert 2**26 < score["memory_before_bytes"] <= score["peak_memory_bytes"] < 2**34
    place = Place(tmp_path / "benchmarks.md", tmp_path)
    body = SECTIONS["queries"].make(Results.load(tmp_path / "results"), place)
    assert "\n| 8 | " in body and "| 100 |" in body

    async def other(engine: RetrieverQueryEngine, question: str) -> str:
        return "another answer"

    monkeypatch.setattr(RetrieverQueryEngine, "aquery", other)
    with pytest.raises(ZtokError, match="8 of 8 answers"):
        queries.main([*files, "--distinct", "3", "--askers", "8"])
