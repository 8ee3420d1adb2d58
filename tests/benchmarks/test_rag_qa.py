"""`rag_qa.py`, with a stand-in for the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stand_in import StandInCompressor, install, write

import common
import rag_qa
from ztok_rag.errors import DataError


@pytest.fixture
def compressor(monkeypatch: pytest.MonkeyPatch) -> StandInCompressor:
    return install(monkeypatch)


def test_rag_qa_reports_the_gain_over_no_context(
    compressor: StandInCompressor, tmp_path: Path
) -> None:
    path = tmp_path / "qa.jsonl"
    records = [
        {"context": f"It is about word{i}.", "question": f"What of word{i}?", "answers": ["Paris"]}
        for i in range(6)
    ]
    write(path, records)
    out = tmp_path / "out"
    arms = ["--arms", "none,text,text-reader,ztok"]
    rag_qa.main(["--data", str(path), "--output", str(out), "--limit", "4", "--rates", "4", *arms])
    rows = {
        (r["arm"], r["metric"]): r for r in json.loads((out / "results.json").read_text())["rows"]
    }
    assert rows["text", "f1_minus_none"]["score"] == 100
    assert rows["ztok", "f1_minus_none"]["score"] == 0
    assert rows["text", "f1"]["gold_retrieved"] == 1
    assert rows["text", "exact_match"]["n"] == 4
    assert rows["text-reader", "f1"]["context_tokens"] == rows["text", "f1"]["context_tokens"]


def test_odd_records_stop_the_run_or_are_left_out(
    compressor: StandInCompressor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "qa.jsonl"
    good = {"context": "It is about words.", "question": "What?", "answers": ["Paris"]}
    lines = [json.dumps(good), '{"context": NaN}', '{"context": "\\ud835"}']
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    arguments = ["--data", str(path), "--output", str(tmp_path / "out"), "--arms", "none"]
    with pytest.raises(DataError, match=r"qa\.jsonl, line 2: NaN is not JSON"):
        rag_qa.main(arguments)
    rag_qa.main([*arguments, "--skip-odd-records"])
    captured = capsys.readouterr()
    assert "left out 2 odd records" in captured.err and "1 of 1 questions" in captured.out


def test_results_are_written_before_anything_is_printed(
    compressor: StandInCompressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "qa.jsonl", [{"context": "Words.", "question": "What?", "answers": ["A"]}])

    def nobody_reads(rows: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr(common, "format_table", nobody_reads)
    out = tmp_path / "out"
    with pytest.raises(BrokenPipeError):
        rag_qa.main(["--data", str(tmp_path / "qa.jsonl"), "--output", str(out), "--arms", "none"])
    assert (out / "results.json").exists() and (out / "report.html").exists()


def test_rag_qa_retrieves_from_documents(compressor: StandInCompressor, tmp_path: Path) -> None:
    sentences = [f"This line of the report tells about word{i}." for i in range(40)]
    write(tmp_path / "documents.jsonl", [{"title": "Report", "text": " ".join(sentences)}])
    write(tmp_path / "qa.jsonl", [{"question": "What of word9?", "answers": ["Paris"]}])
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "qa.jsonl"), "--chunk-tokens", "24", "--k", "1,3"]
    arguments += ["--documents", str(tmp_path / "documents.jsonl"), "--output", str(out)]
    rag_qa.main([*arguments, "--arms", "none,text"])
    results = json.loads((out / "results.json").read_text())
    tokens = {r["k"]: r["context_tokens"] for r in results["rows"] if r["arm"] == "text"}
    assert tokens[1] <= 24 < tokens[3] <= 3 * 24 + 2
    assert all("gold_retrieved" not in row for row in results["rows"])
    prompts = [p[0] for a, ps in compressor.reader.calls for p in ps if a is None]
    assert all("word9." in prompt for prompt in prompts)
    with pytest.raises(DataError, match=r"qa\.jsonl, line 1: field 'context' is missing"):
        rag_qa.main(["--data", str(tmp_path / "qa.jsonl"), "--output", str(out)])
    write(tmp_path / "documents.jsonl", [{"title": "Report"}])
    with pytest.raises(DataError, match=r"documents\.jsonl, line 1: it has no text"):
        rag_qa.main(arguments)
