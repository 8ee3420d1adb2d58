"""`longbench.py`: prompts, budgets, resume and results, with a stand-in for the model."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from stand_in import TEMPLATES, StandInCompressor, WordTokenizer, install, write_longbench

import common
import longbench
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.errors import DataError


@pytest.fixture
def compressor(monkeypatch: pytest.MonkeyPatch) -> StandInCompressor:
    return install(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_longbench(tmp_path / "data")
    return tmp_path / "data"


def run(data: Path, output: Path, *more: str) -> dict[str, Any]:
    arguments = ["--data", str(data), "--output", str(output), "--chunk-tokens", "60"]
    longbench.main([*arguments, "--k", "2", "--arms", "none,text,ztok", *more])
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def test_all_arms_end_in_results_report_and_predictions(
    compressor: StandInCompressor, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(data, tmp_path / "out")
    assert {"command", "commit", "machine", "seed", "checkpoint", "rows"} <= results.keys()
    rows = {(r["task"], r["arm"], r["rate"]): r for r in results["rows"]}
    assert rows["hotpotqa", "text", 1.0]["score"] == 60
    assert rows["hotpotqa", "ztok", 4.0]["score"] == 40
    assert {r["task"] for r in results["rows"]} == {"hotpotqa", "lcc", "average"}
    low, high = rows["hotpotqa", "text", 1.0]["ci95"]
    assert low < 60 < high
    assert rows["hotpotqa", "none", None]["context_tokens"] == 0
    text, z = rows["hotpotqa", "text", 1.0], rows["hotpotqa", "ztok", 8.0]
    assert z["context_tokens"] < text["context_tokens"] / 6
    assert z["real_rate"] == pytest.approx(8, rel=0.1) and "real_rate" not in text
    assert (text["prefill_ms"], text["ttft_ms"], text["kv_bytes"]) == (2, 3, 4)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/svg+xml;base64," in page and "http://" not in page
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 4 * 6
    assert "bytes/source token" in capsys.readouterr().out


def test_prompts_hold_two_chunks_in_document_order(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "out", "--tasks", "hotpotqa", "--rates", "4", "--batch-size", "2")
    text = [p for adapter, prompts in compressor.reader.calls for p in prompts if adapter is None]
    topics = [[int(n) for n in re.findall(r"word(\d)", prompt[0])] for prompt in text]
    assert all(numbers == sorted(numbers) and len(set(numbers)) >= 2 for numbers in topics)
    read = [p for a, prompts in compressor.reader.calls for p in prompts if a == "read"]
    spliced = [p for p in read if len(p) > 1]
    assert all([type(s) for s in p] == [str, ZSequence, str, ZSequence, str] for p in spliced)
    assert all(p[0] == "Passages:\n" and p[2] == "\n\n" for p in spliced)
    assert len(compressor.texts) == len(set(compressor.texts))


def test_code_keeps_its_line_ends(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "out", "--tasks", "lcc")
    prompts = [p for adapter, ps in compressor.reader.calls for p in ps if adapter is None]
    assert prompts == [["def f(x):\n    y = x\nNext:"]]


def test_an_interrupted_run_resumes(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compressor.reader.fail_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(data, out, "--batch-size", "2")
    log = out / "predictions.jsonl"
    done = log.read_text()
    assert 0 < done.count("\n") < 24 and not (out / "results.json").exists()
    log.write_text(done + '{"task": "hotpotqa", "arm": "te')
    compressor.reader.fail_after = math.inf
    asked = len(compressor.reader.calls)
    run(data, out, "--batch-size", "2")
    again = sum(len(prompts) for _, prompts in compressor.reader.calls[asked:])
    assert again == 24 - done.count("\n")
    assert log.read_text().startswith(done)
    asked = len(compressor.reader.calls)
    before = json.loads((out / "results.json").read_text())["rows"]
    assert run(data, out)["rows"] == before
    assert len(compressor.reader.calls) == asked


def test_a_run_grows_by_tasks_rates_and_questions(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "out", "--tasks", "hotpotqa", "--rates", "4", "--limit", "2")
    assert sum(len(prompts) for _, prompts in compressor.reader.calls) == 3 * 2
    run(data, tmp_path / "out", "--rates", "4,8", "--limit", "4")
    assert sum(len(prompts) for _, prompts in compressor.reader.calls) == 4 * (4 + 1)


def test_other_settings_are_refused(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "out", "--tasks", "lcc")
    with pytest.raises(DataError, match="chunk_tokens was 60 and is now 70"):
        run(data, tmp_path / "out", "--tasks", "lcc", "--chunk-tokens", "70")


def test_a_run_holds_several_k(compressor: StandInCompressor, data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out", "--tasks", "hotpotqa", "--rates", "4", "--k", "1")
    asked = len(compressor.reader.calls)
    results = run(data, tmp_path / "out", "--tasks", "hotpotqa", "--rates", "4", "--k", "1,3")
    again = sum(len(prompts) for _, prompts in compressor.reader.calls[asked:])
    assert again == 2 * 5  # not `none`, and nothing of k = 1
    rows = {(r["arm"], r["k"]): r for r in results["rows"]}
    assert rows.keys() == {("none", 0)} | {(arm, k) for arm in ("text", "ztok") for k in (1, 3)}
    assert len(results["rows"]) == len(rows)
    assert rows["text", 1]["context_tokens"] < rows["text", 3]["context_tokens"] / 2
    assert "text, k=3" in (tmp_path / "out" / "report.html").read_text()


def test_peers_get_the_budget_of_z_tokens(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    arms = ["--arms", "ztok,text-reader,truncate,fewer-chunks", "--rates", "2,4"]
    results = run(data, tmp_path / "out", "--k", "1,2", *arms)
    rows = {(r["task"], r["arm"], r["rate"], r["k"], r["metric"]): r for r in results["rows"]}
    assert len(rows) == len(results["rows"])
    raw = rows["hotpotqa", "text-reader", 1.0, 2, "f1"]["context_tokens"]
    for rate in (2.0, 4.0):
        for peer in ("truncate", "fewer-chunks"):
            row = rows["hotpotqa", peer, rate, 2, "f1"]
            assert 0 < row["context_tokens"] <= math.ceil(raw / rate)
            assert row["shorten_ms"] >= 0
            assert row["bytes_per_source_token"] > 1
            for task, metric in (
                ("hotpotqa", "f1"),
                ("lcc", "edit_similarity"),
                ("average", "mean"),
            ):
                for k in (1, 2):
                    assert (task, "ztok", rate, k, f"{metric}_minus_{peer}") in rows
        halves = rows["hotpotqa", "fewer-chunks", 2.0, 2, "f1"]["context_tokens"]
        assert halves == rows["hotpotqa", "text-reader", 1.0, 1, "f1"]["context_tokens"]
    assert {adapter for adapter, _ in compressor.reader.calls} == {"read"}


def test_a_summary_of_a_page_is_long_and_has_no_question_to_read_first(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    lines = (data / "hotpotqa.jsonl").read_text()
    (data / "multi_news.jsonl").write_text(lines)
    templates, lengths = (data / name for name in ("dataset2prompt.json", "dataset2maxlen.json"))
    templates.write_text(json.dumps({**TEMPLATES, "multi_news": "News:\n{context}\nSummary:"}))
    lengths.write_text(json.dumps({"hotpotqa": 32, "multi_news": 160}))
    arms = ["--arms", "text-reader,ztok,truncate", "--rates", "4", "--limit", "1"]
    run(data, tmp_path / "out", "--tasks", "hotpotqa,multi_news", *arms)
    assert compressor.reader.asked == 3 * [(True, 1)] + 3 * [(False, 128)]


def test_a_long_context_loses_its_middle_and_is_counted(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    results = run(data, tmp_path / "out", "--tasks", "hotpotqa", "--k", "0", "--rates", "4")
    rows = {(r["arm"], r["metric"]): r for r in results["rows"]}
    assert rows["text", "f1"]["truncated"] == 5
    assert rows["none", "f1"]["truncated"] == 0
    prompts = [p[0] for a, ps in compressor.reader.calls for p in ps if a is None]
    assert all("word0" in p and "word8" in p and "word4" not in p for p in prompts)


def test_the_plain_base_is_asked_in_its_chat_format(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    class ChatTokenizer(WordTokenizer):
        chat_template = "yes"

        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return f"<user> {messages[0]['content']} <reply>"

    compressor.tokenizer = ChatTokenizer()
    run(data, tmp_path / "out", "--rates", "4")
    for adapter, prompts in compressor.reader.calls:
        for prompt in prompts:
            chat = prompt[0].startswith("<user> Passages") and prompt[-1].endswith(" <reply>")
            assert chat == (adapter is None and "Passages" in prompt[0])


def test_unknown_task_names_the_known_ones(data: Path) -> None:
    with pytest.raises(DataError, match=r"unknown task 'hotpot'; the tasks are narrativeqa, .*lcc"):
        longbench.main(["--data", str(data), "--tasks", "hotpot"])


def test_the_script_exits_with_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["longbench.py", "--data", str(data), "--tasks", "x"])
    with pytest.raises(SystemExit) as exit_status:
        common.run_script(longbench.main)
    assert exit_status.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_without_data_it_says_that_it_is_not_longbench(
    compressor: StandInCompressor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compressor.reader.max_positions = 8000
    arguments = ["--limit", "3", "--arms", "text,ztok", "--rates", "4"]
    longbench.main([*arguments, "--output", str(tmp_path)])
    assert "NOT LongBench" in capsys.readouterr().out
    assert "NOT LongBench" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["task"] == "pydoc_qa"
