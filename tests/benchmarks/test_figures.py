"""`figures.py` and `learning_curve.py`: documents and pictures from results made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import figures
import learning_curve
import result_rows
from result_rows import SQUAD
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
    scores = {"truncate": 18.0, "longllmlingua": 12.0, "ztok": 30.0, "ztok-twice": 34.0}
    for arm, f1 in scores.items():
        for rate in (4.0, 8.0):
            scored = {"rate": rate, "context_tokens": 134 / rate, "source_tokens_per_position": 4}
            if arm.startswith("ztok"):
                scored["real_rate"] = rate - 0.25
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
        row("reconstruction", SQUAD + " reconstruction", "ztok", "bleu4", 100.0, rate=4.0),
        row(
            "reconstruction",
            SQUAD + " reconstruction",
            "repeat",
            "bleu4",
            91.3,
            rate=4.0,
            real_rate=4.02,
        ),
        row("qa", SQUAD, "ztok-twice", "f1", 52.0, rate=8.0, real_rate=7.93),
        row("qa", SQUAD, "ztok-twice", "share_of_text_reader", 83.0, rate=8.0),
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
        "accuracy.png", "throughput.png", "query_time.png", "context_length.png", "bytes.png",
    }  # fmt: skip
    assert all(f"](pictures/{name})" in text for name in pictures)

    table = section(text, "squad")
    assert "1 chunk retrieved (20 questions)" in table and "3 chunks retrieved" in table
    assert "| **Z-tokens, rate 8** | **22.0 (19.0 to 25.0)** |  | **7.75** |" in table
    assert "| **Z-tokens, two looks, rate 8** | **26.0 (23.0 to 29.0)** |" in table
    assert "| truncated text, rate 8 | 10.0 (7.0 to 13.0) |  |  |" in table
    assert "checkpoint `0123456789abcdef`" in table
    assert "13.0 (10.0 to 16.0)" in section(text, "covid")
    paired = section(text, "paired")
    assert (
        "| Z-tokens, rate 8 | LongLLMLingua | squad/dev | 1 | +12.0 (+7.5 to +16.5) | higher |"
        in paired
    )
    longbench = section(text, "longbench")
    assert "### 4 chunks" in longbench and "| arm | real rate | hotpotqa, f1 of 20 |" in longbench
    assert "| **Z-tokens, rate 4** |  | **11.5" in longbench

    throughput = section(text, "throughput")
    assert throughput.startswith("\n## Compression throughput\n\n![")
    assert "**compress, rate 8** | **400** | **360 to 440** | **80%**" in throughput
    assert "3.0 times" in section(text, "query")
    lengths = section(text, "context")
    assert "9.0 times" in lengths  # first token at 8,000
    assert "| 32,000 | raw text | 100 | not readable |" in lengths
    assert "**0.95" in section(text, "bytes")

    paper = section(text, "paper")
    assert "| HotpotQA | F1 | 33.35 | 11.5 (8.5 to 14.5) at rate 4 | 15.5 (12.5 to 18.5) |" in paper
    assert "| 99.31 | 91.3 (88.3 to 94.3) at rate 4 |" in paper
    assert "QASPER" not in paper  # not run


def test_prose_around_stays_and_what_was_not_run_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "results" / "squad_dev", [*squad(), *others()])
    pictures = tmp_path / "docs" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "query_time.png").write_bytes(b"of an earlier run")
    (tmp_path / "docs" / "benchmarks.md").write_text(
        "# Ours\n\nBefore.\n\n<!-- begin: query -->\nold\n<!-- end: query -->\n\nBetween.\n\n"
        "<!-- begin: squad --><!-- end: squad -->\n\n<!-- begin: gold -->\n<!-- end: gold -->\n\n"
        "<!-- begin: repeated -->\n<!-- end: repeated -->\n\nAfter.\n"
    )
    text = make(tmp_path)
    assert text.startswith("# Ours\n\nBefore.\n\n<!-- begin: query -->\n\n<!-- end: query -->\n")
    assert "\n\nBetween.\n\n" in text and text.endswith("\n\nAfter.\n")
    assert list(pictures.iterdir()) == []
    assert "## SQuAD dev" in text and "no context" in section(text, "squad")
    gold, repeated = section(text, "gold"), section(text, "repeated")
    assert (
        "| **Z-tokens, two looks, rate 8** | **52.0 (49.0 to 55.0)** | **83 (80 to 86)** |" in gold
    )
    assert "| **7.93** |" in gold
    assert "| squad/dev reconstruction | repeated by the reader | 20 | 4 | 4.02 | 91.3" in repeated
    assert make(tmp_path) == text


def test_pictures_and_sections_without_any_of_their_results(tmp_path: Path) -> None:
    write(tmp_path / "results" / "other", [row("else", "what", "ztok", "f1", 1.0)])
    text = make(tmp_path)
    for name, part in figures.SECTIONS.items():
        assert not part.title or section(text, name).strip() == ""
    assert not (tmp_path / "docs" / "pictures").exists()


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


def test_learning_curve_of_a_write_head(tmp_path: Path) -> None:
    log, output = tmp_path / "log.jsonl", tmp_path / "curve.png"
    lines: list[dict[str, object]] = [{"step": 1, "positions": 8, "nats": 9.0}]
    log.write_text(json.dumps(lines[0]) + "\n")
    arguments = ["--write", "--log", str(log), "--output", str(output)]
    with pytest.raises(DataError, match="held-out"):
        learning_curve.main(arguments)
    for step in (2, 3):
        scores = {"held_out_nats": [5.0, 6.0], "held_out_agreement": [0.2, 0.1]}
        lines.append({"step": step, "positions": 8 * step, "held_out_run": 1.2, **scores})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    learning_curve.main(arguments)
    assert output.stat().st_size > 5000
