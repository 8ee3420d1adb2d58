"""`figures.py` and `learning_curve.py`: documents and pictures from results made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import figures
import learning_curve
import result_rows
from ztok_rag.errors import DataError

Row = dict[str, Any]


def row(benchmark: str, task: str, arm: str, metric: str, score: float, **fields: Any) -> Row:
    return {
        "benchmark": benchmark, "task": task, "arm": arm, "rate": 1.0, "k": 1, "metric": metric,
        "score": score, "ci95": [score - 3, score + 3], "n": 20, "context_tokens": 100.0,
        "bytes_per_source_token": 2.0, "prefill_ms": 90.0, "ttft_ms": 100.0, "kv_bytes": 2.0**20,
        "p10": 0.9 * score, "p90": 1.1 * score, **fields,
    }  # fmt: skip


def squad() -> list[Row]:
    rows = [
        row("rag_qa", "squad/dev", "none", "f1", 9.0, rate=None, k=0, context_tokens=0.0),
        row("rag_qa", "squad/dev", "text-reader", "f1", 44.0, context_tokens=134.0),
        row("rag_qa", "squad/dev", "text-reader", "f1", 41.0, k=3, context_tokens=400.0),
    ]
    for arm, f1 in (("truncate", 18.0), ("longllmlingua", 12.0), ("ztok", 30.0)):
        for rate in (4.0, 8.0):
            scored = {"rate": rate, "context_tokens": 134 / rate, "source_tokens_per_position": 4}
            rows.append(row("rag_qa", "squad/dev", arm, "f1", f1 - rate, **scored))
    rows.append(row("rag_qa", "covidqa/questions", "ztok", "f1", 13.0, k=5, rate=8.0))
    less = {"rate": 8.0, "ci95": [7.5, 16.5]}
    rows.append(row("rag_qa", "squad/dev", "ztok", "f1_minus_longllmlingua", 12.0, **less))
    return rows


def latency() -> list[Row]:
    rows = [
        row("latency", "compress", "base", "prefill_tokens_per_second", 500.0),
        row("latency", "compress", "ztok", "compress_tokens_per_second", 400.0, rate=8.0),
        row("latency", "compress", "ztok", "share_of_prefill", 80.0, rate=8.0),
        row("latency", "context 8000", "text-reader", "ttft_ms", 9000.0, source_tokens=8000),
        row("latency", "context 8000", "text-reader", "readable", 100.0, source_tokens=8000),
        row("latency", "context 8000", "ztok", "ttft_ms", 1000.0, rate=8.0, source_tokens=8000),
        row("latency", "context 32000", "text-reader", "readable", 0.0, source_tokens=32000),
        row("latency", "bytes", "text", "bytes_per_source_token", 4.5),
        row("latency", "bytes", "ztok", "bytes_per_source_token", 0.95, rate=8.0),
    ]
    for task, arm, rate, ms in (("raw", "text-reader", 1.0, 3000), ("warm", "ztok", 8.0, 1000)):
        for part in ("answer", *result_rows.PHASES):
            share = ms if part == "answer" else ms / 4
            rows.append(row("latency", f"query {task}", arm, f"{part}_ms", share, rate=rate))
    return rows


def others() -> list[Row]:
    return [
        row("longbench", "hotpotqa", "ztok", "f1", 11.5, rate=4.0, k=4),
        row("longbench", "hotpotqa", "text-reader", "f1", 15.5, k=4),
        row("reconstruction", "wiki reconstruction", "ztok", "bleu4", 100.0, rate=4.0),
        row("reconstruction", "wiki reconstruction", "repeat", "bleu4", 91.3, rate=4.0),
        row("memory_tokens", "squad/dev", "ztok", "f1", 25.0, rate=4.0),
        row("training_speed", "train in bfloat16", "ztok", "share_of_lora", 90.0),
        row("memory_tokens", "squad/dev", "memory", "f1", 15.0, rate=4.0),
        row("memory_tokens", "squad/dev", "ztok", "f1_minus_memory", 10.0, rate=4.0),
    ]


def write(folder: Path, rows: list[Row], **run: Any) -> None:
    folder.mkdir(parents=True)
    data = {"machine": {"cores": 2, "processor": "A CPU"}, **run, "rows": rows}
    (folder / "results.json").write_text(json.dumps(data))


def make(tmp_path: Path) -> str:
    """Runs the script; what is in the document then."""
    document = tmp_path / "docs" / "benchmarks.md"
    options = {"--documents": document, "--pictures": tmp_path / "docs" / "pictures"}
    options["--results"] = tmp_path / "results"
    figures.main([str(part) for option in options.items() for part in option])
    return document.read_text()


def section(text: str, name: str) -> str:
    return text.split(f"<!-- begin: {name} -->")[1].split(f"<!-- end: {name} -->")[0]


def test_every_section(tmp_path: Path) -> None:
    write(tmp_path / "results" / "squad_dev", squad(), fingerprint="0123456789abcdef")
    write(tmp_path / "results" / "latency", latency())
    write(tmp_path / "results" / "deeper" / "others", others())
    text = make(tmp_path)
    pictures = {path.name for path in (tmp_path / "docs" / "pictures").iterdir()}
    assert pictures == {
        "accuracy.png", "throughput.png", "query_time.png",
        "context_length.png", "bytes.png", "memory_tokens.png",
    }  # fmt: skip
    assert all(f"](pictures/{name})" in text for name in pictures)

    table = section(text, "squad")
    assert "1 chunk retrieved (20 questions)" in table and "3 chunks retrieved" in table
    assert "| **Z-tokens, rate 8** | **22.0 (19.0 to 25.0)** |" in table
    assert "checkpoint `0123456789abcdef`" in table
    assert "13.0 (10.0 to 16.0)" in section(text, "covid")
    paired = section(text, "paired")
    assert (
        "| Z-tokens, rate 8 | LongLLMLingua | squad/dev | 1 | +12.0 (+7.5 to +16.5) | higher |"
        in paired
    )
    longbench = section(text, "longbench")
    assert "### 4 chunks" in longbench and "| arm | hotpotqa, f1 of 20 |" in longbench
    assert "| **Z-tokens, rate 4** | **11.5" in longbench

    times = section(text, "latency")
    assert "**compress, rate 8** | **400** | **360 to 440** | **80%**" in times
    assert "3.0 times" in times  # time to answer
    assert "9.0 times" in times  # first token at 8,000
    assert "| 32,000 | raw text | 100 | not readable |" in times
    assert "**0.95" in section(text, "bytes")

    assert "| train in bfloat16 |  |  |  | 90 (87 to 93) |" in section(text, "training")

    paper = section(text, "paper")
    assert "| HotpotQA | F1 | 33.35 | 11.5 (8.5 to 14.5) at rate 4 | 15.5 (12.5 to 18.5) |" in paper
    assert "| 99.31 | 91.3 (88.3 to 94.3) at rate 4 |" in paper
    assert "| QASPER | F1 | 18.31 | not run |" in paper
    assert "+10.0 (+7.0 to +13.0)" in section(text, "memory")


def test_prose_around_stays_and_absent_results_are_said(tmp_path: Path) -> None:
    write(tmp_path / "results" / "squad_dev", squad())
    document = tmp_path / "docs" / "benchmarks.md"
    document.parent.mkdir()
    document.write_text(
        "# Ours\n\nBefore.\n\n<!-- begin: latency -->\nold\n<!-- end: latency -->\n\nBetween.\n\n"
        "<!-- begin: headline --><!-- end: headline -->\n\nAfter.\n"
    )
    text = make(tmp_path)
    assert text.startswith("# Ours\n\nBefore.\n\n<!-- begin: latency -->")
    assert "\n\nBetween.\n\n" in text and text.endswith("\n\nAfter.\n")
    assert "old" not in text and section(text, "latency").count("not run") == 3
    assert "no context" in section(text, "headline")
    assert make(tmp_path) == text


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("<!-- begin: speed -->\n<!-- end: speed -->", "marks a section 'speed'"),
        ("<!-- begin: bytes -->\n", "has no <!-- end: bytes -->"),
    ],
)
def test_bad_markers(document: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "results" / "squad_dev", squad())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "benchmarks.md").write_text(document)
    with pytest.raises(DataError, match=message):
        make(tmp_path)


def test_bad_results(tmp_path: Path) -> None:
    (tmp_path / "results" / "x").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no results\.json"):
        make(tmp_path)
    (tmp_path / "results" / "x" / "results.json").write_text('{"rows": [{}]}')
    with pytest.raises(DataError, match="is damaged"):
        make(tmp_path)


def test_learning_curve(tmp_path: Path) -> None:
    log, output = tmp_path / "curve.jsonl", tmp_path / "curve.png"
    records = [
        {
            "run": "shipped",
            "positions": 1000 * step,
            "set": name,
            "asked": "before and after, whole tail" if name == "squad" else "after",
            "rate": rate,
            "nats": rate / step,
        }
        for step in (1, 2, 3)
        for name in ("squad", "repeat")
        for rate in (2, 4)
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    learning_curve.main(["--log", str(log), "--output", str(output)])
    assert output.stat().st_size > 10_000
    with pytest.raises(DataError, match="no measurements of the run 'other'"):
        learning_curve.main(["--log", str(log), "--run", "other", "--output", str(output)])
    log.write_text(json.dumps({"run": "shipped"}) + "\n")
    with pytest.raises(DataError, match="line 1: there is no 'positions'"):
        learning_curve.main(["--log", str(log), "--output", str(output)])
