"""`benchmarks/writing.py` and its section in the documents, on the real default model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import BAKERY, PASSAGE

import figures
import writing
from ztok_rag import ZCompressor
from ztok_rag.errors import DataError


def test_writing(tmp_path: Path, compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "load_compressor", lambda options: compressor)
    monkeypatch.setattr(writing, "PROMPT_TOKENS", 12)
    ways = ("token by token", "confidence 0.3", "confidence 0.5, read back as Z-tokens")
    monkeypatch.setattr(writing, "WAYS", {way: writing.WAYS[way] for way in ways})
    (tmp_path / "mine").mkdir()
    texts = tmp_path / "mine" / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in (PASSAGE, BAKERY)))
    summaries = tmp_path / "mine" / "summaries.jsonl"
    summaries.write_text(json.dumps({"context": PASSAGE, "answers": ["A lighthouse."]}) + "\n")
    output = tmp_path / "results" / "writing"
    arguments = ["--data", str(texts), "--max-new-tokens", "10", "--output", str(output)]
    writing.main([*arguments, "--summaries", str(summaries), "--limit", "1"])
    rows = json.loads((output / "results.json").read_text())["rows"]
    score = {(row["task"], row["what"], row["metric"]): row["score"] for row in rows}
    for task in ("mine/texts, continued", "summaries"):
        own = {metric: score[task, ways[0], metric] for metric in ("passes", "tokens")}
        assert own["tokens"] <= own["passes"] <= own["tokens"] + 1  # one may have ended it
        assert score[task, ways[1], "passes"] <= own["passes"]
        assert score[task, ways[1], "perplexity"] > 1
    assert ("summaries", ways[0], "rouge_l") in score
    assert ("mine/texts, continued", ways[0], "rouge_l") not in score
    document = tmp_path / "benchmarks.md"
    document.write_text("<!-- begin: writing -->\n<!-- end: writing -->\n")
    where = ["--results", str(tmp_path / "results"), "--pictures", str(tmp_path)]
    figures.main([*where, "--documents", str(document)])
    assert "| summaries | confidence 0.3 |" in document.read_text()
    assert (tmp_path / "writing.png").stat().st_size > 5000
    with pytest.raises(DataError, match="smaller --limit"):
        writing.main([*arguments, "--limit", "3"])
