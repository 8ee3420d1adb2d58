"""`benchmarks/follow_ups.py` on two dialogues, and the table that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import BAKERY, PASSAGE
from documents import filled

import follow_ups
from ztok_rag import ZCompressor

TURNS = (
    ("a-0-0", BAKERY, "When does the bakery open?", "six"),
    ("a-0-1", BAKERY, "Why?", "bread"),
    ("a-1-0", PASSAGE, "Who built the lighthouse on Gull Rock?", "Marta Lindqvist"),
    ("a-1-1", PASSAGE, "In which year?", "1873"),
)


def write(path: Path, turns: tuple[tuple[str, str, str, str], ...] = TURNS) -> str:
    fields = ("id", "context", "question", "answers")
    records = [dict(zip(fields, (*turn[:3], [turn[3]]), strict=True)) for turn in turns]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_follow_ups_find_the_context_of_the_turn_before(
    tmp_path: Path, compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_ups, "load_compressor", lambda options: compressor)
    monkeypatch.setattr(follow_ups, "LONGEST", 4)
    output = tmp_path / "results" / "follow_ups"
    follow_ups.main(["--data", write(tmp_path / "data.jsonl"), "--output", str(output)])
    rows = [r for r in json.loads((output / "results.json").read_text())["rows"] if r["k"] == 1]
    found = {(row["task"], row["arm"]): row["score"] for row in rows}
    assert found["goes on", "follow-up"] == 100
    assert found["another subject", "question"] == 100
    assert len(found) == len(follow_ups.ARMS) * 2 and {row["n"] for row in rows} == {2}
    made = filled(tmp_path / "results", tmp_path, "follow_ups")
    assert "| **what `ZTokenLLM` makes of it** | **100.0" in made


def test_dialogues_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.jsonl", TURNS[::2])
    with pytest.raises(Exception, match="no dialogues of several turns"):
        follow_ups.main(["--data", data, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        follow_ups.main(["--data", data, "--arms", "rewriter", "--output", str(tmp_path / "out")])
    assert "the arms are question, reader, follow-up" in capsys.readouterr().err
