"""The benchmark harness: data, prompts, resume and results.

The model is replaced by a stand-in that cuts words, so that these tests are about the harness.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import common
import longbench
import peers.text
import rag_qa
from tasks import pydoc
from tasks import records as task_records
from tasks.download import download
from tasks.kinds import LONGBENCH, make_question
from ztok_rag.codec.nested import FINEST, NestedSequence
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.errors import DataError
from ztok_rag.evaluation import (
    Arm,
    PredictionLog,
    bootstrap_ci,
    cut_middle,
    make_arms,
    read_jsonl,
    sample,
    split_template,
    stratified_ci,
)

FINGERPRINT = "0123456789abcdef"
TEMPLATES = {
    "hotpotqa": "Passages:\n{context}\nQuestion: {input}\nAnswer:",
    "lcc": "{context}Next:",
}


class WordTokenizer:
    """Words and white space as tokens."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[tuple[int, int]]]:
        return {"offset_mapping": [m.span() for m in re.finditer(r"\s*\S+|\s+", text)]}

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(range(len(self(text)["offset_mapping"])))


class StandInReader:
    """Answers with the last word before the question, and records what it was asked."""

    max_positions = 400
    adapters = ("compress", "read")

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, list[Any]]] = []
        self.fail_after = math.inf

    def count_tokens(self, prompt: Any) -> int:
        parts = [prompt] if isinstance(prompt, str) else prompt
        tokens = WordTokenizer()
        return sum(len(p) if isinstance(p, ZSequence) else len(tokens.encode(p)) for p in parts)

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int,
        adapter: str | None,
        batch_size: int,
    ) -> list[str]:
        if len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        assert all(self.count_tokens(p) + max_new_tokens <= self.max_positions for p in prompts)
        self.calls.append((adapter, list(prompts)))
        return ["Paris" if adapter is None else "Rome" for _ in prompts]

    def measure(self, prompt: Any, *, adapter: str | None) -> Any:
        return SimpleNamespace(context_tokens=1, prefill_ms=2.0, ttft_ms=3.0, kv_bytes=4)


class StandInCompressor:
    """One Z-token per `rate` words."""

    fingerprint = FINGERPRINT

    def __init__(self) -> None:
        self.reader = StandInReader()
        self.model = SimpleNamespace(state=lambda: ({}, {}))
        self.tokenizer = WordTokenizer()
        self.texts: list[str] = []

    def compress_nested(self, texts: Sequence[str]) -> list[NestedSequence]:
        made = self.compress(texts, FINEST)
        return [NestedSequence(z, np.full(len(z), 8, np.uint8)) for z in made]

    def compress(self, texts: Sequence[str], rate: float) -> list[ZSequence]:
        out = []
        self.texts += texts
        for text in texts:
            tokens = len(self.tokenizer.encode(text))
            n = math.ceil(tokens / rate)
            ends = np.linspace(0, len(text), n + 1).astype(np.int64)
            spans = np.stack([ends[:-1], ends[1:]], axis=1)
            out.append(ZSequence(np.ones((n, 2), np.uint16), spans, (n,), tokens, FINGERPRINT))
        return out


@pytest.fixture
def compressor(monkeypatch: pytest.MonkeyPatch) -> StandInCompressor:
    stand_in = StandInCompressor()

    def embed(texts: Sequence[str]) -> Any:
        vectors = np.full((len(texts), 257), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for word in set(re.findall(r"\w+", text.lower())):
                vectors[row, sum(word.encode()) % 257] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for script in (longbench, rag_qa):
        monkeypatch.setattr(script, "load_compressor", lambda options: stand_in)
    for module in (longbench, rag_qa, peers.text):
        monkeypatch.setattr(module, "embed_texts", embed)
        monkeypatch.setattr(module, "embed_queries", embed)
    return stand_in


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    long = "\n\n\n".join(f"Topic {i} is about word{i} and more of it. " * 8 for i in range(9))
    records = [
        {
            "_id": f"h{i}",
            "input": f"What is topic {i}?",
            "context": long,
            "answers": ["Rome" if i % 2 else "Paris"],
            "all_classes": None,
        }
        for i in range(5)
    ]
    write(folder / "hotpotqa.jsonl", records)
    write(
        folder / "lcc.jsonl",
        [{"input": "", "context": "def f(x):\n    y = x\n", "answers": ["    return y"]}],
    )
    (folder / "dataset2prompt.json").write_text(json.dumps(TEMPLATES))
    (folder / "dataset2maxlen.json").write_text(json.dumps({"hotpotqa": 32, "lcc": 64}))
    return folder


def write(path: Path, records: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


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
    compressor.reader.adapters = ("compress", "read", "text")
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
    adapters = {adapter for adapter, _ in compressor.reader.calls}
    assert adapters == {"read", "text"}


def test_a_long_context_loses_its_middle_and_is_counted(
    compressor: StandInCompressor, data: Path, tmp_path: Path
) -> None:
    results = run(data, tmp_path / "out", "--tasks", "hotpotqa", "--k", "0", "--rates", "4")
    rows = {(r["arm"], r["metric"]): r for r in results["rows"]}
    assert rows["text", "f1"]["truncated"] == 5
    assert rows["none", "f1"]["truncated"] == 0
    prompts = [p[0] for a, ps in compressor.reader.calls for p in ps if a is None]
    assert all("word0" in p and "word8" in p and "word4" not in p for p in prompts)


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


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "line 2: .*Expecting property name"),
        ("[1]", "line 2: it is not a JSON object"),
        ('{"input": "a", "context": "b"}', "line 2: field 'answers' is missing"),
        ('{"input": 1, "context": "b", "answers": ["a"]}', "line 2: field 'input' is not a str"),
        ('{"input": "a", "context": "b", "answers": []}', "line 2: .*non-empty list of strings"),
    ],
)
def test_a_malformed_record_names_file_line_and_cause(data: Path, line: str, cause: str) -> None:
    path = data / "hotpotqa.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DataError, match=cause) as error:
        task_records.load_task(data, "hotpotqa")
    assert str(path) in str(error.value)


def test_records_of_some_tasks_need_more(data: Path) -> None:
    record = {"input": "q", "context": "c", "answers": ["City"], "all_classes": None}
    for task, cause in (("trec", "all_classes"), ("passage_retrieval_en", "Paragraph 7")):
        write(data / f"{task}.jsonl", [record])
        with pytest.raises(DataError, match=f"line 1: .*{cause}"):
            task_records.load_task(data, task)
    write(data / "qasper.jsonl", [{**record, "context": " "}])
    with pytest.raises(DataError, match="line 1: the context is empty"):
        task_records.load_task(data, "qasper")


def test_quality_comes_in_the_format_of_l_eval(tmp_path: Path) -> None:
    question = "Who left?\n\n (A) The keeper \n (B)  The engineer\nand her son \n (C) Nobody "
    asked = {"question": question, "answer": "(B) The engineer and her son\n"}
    story = {"id": "story", "document": "A long story.", "questions": [asked]}
    file = tmp_path / "leval_quality.jsonl"
    file.write_text(json.dumps(story) + "\n", encoding="utf-8")
    (record,) = task_records.load_task(tmp_path, "quality")
    assert record["all_classes"] == [
        "(A) The keeper",
        "(B)  The engineer\nand her son",
        "(C) Nobody",
    ]
    assert record["answers"] == record["all_classes"][1:2]
    assert "{input}" in task_records.load_config(tmp_path, None, ["quality"])[0]["quality"]

    story["questions"] = [{**asked, "answer": "(D) The cook"}]
    file.write_text(json.dumps(story) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: the answer .* not among"):
        task_records.load_task(tmp_path, "quality")


def test_the_hub_is_asked_for_the_tasks_of_longbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as files:
        for task in LONGBENCH:
            files.writestr(f"data/{task}.jsonl", "{}")
    monkeypatch.setenv("ZTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(archive))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(b"{}"))
    folder = download()
    found = {path.stem for path in folder.glob("*.jsonl")}
    assert found == set(LONGBENCH) and len(found) == 16
    archive.unlink()
    assert download() == folder, "what is there is not asked for again"


def test_missing_files_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"qasper\.jsonl does not exist"):
        task_records.load_task(data, "qasper")
    (data / "dataset2prompt.json").unlink()
    with pytest.raises(DataError, match=r"dataset2prompt\.json"):
        task_records.load_config(data, None, ["lcc"])
    own = tmp_path / "own.json"
    own.write_text(json.dumps(TEMPLATES))
    assert task_records.load_config(data, own, ["lcc"])[0] == TEMPLATES
    with pytest.raises(DataError, match="no entry of type str for the task qasper"):
        task_records.load_config(data, own, ["qasper"])


def test_first_line_tasks_score_the_first_line() -> None:
    record = {
        "_id": "1", "input": "Question: q\nType:", "context": "c", "answers": ["City"],
        "all_classes": ["City", "Country"],
    }  # fmt: skip
    question = make_question("trec", record, "{context}\n{input}", 8)
    assert question.score("\nCity\nType: Country") == {"classification": 1}


def test_every_own_question_is_answered_by_its_document() -> None:
    path = Path(pydoc.__file__).parent / "pydoc_qa.json"
    records = pydoc.pydoc_records()
    if sys.version_info[:2] == (3, 11):
        assert len(records) == len(json.loads(path.read_text()))
    assert len(records) >= 25
    for record in records:
        assert record["answers"][0].lower() in record["context"].lower(), record["input"]


def test_without_data_it_says_that_it_is_not_longbench(
    compressor: StandInCompressor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compressor.reader.max_positions = 8000
    arguments = ["--limit", "3", "--arms", "text,ztok", "--rates", "4"]
    longbench.main([*arguments, "--output", str(tmp_path)])
    assert "NOT LongBench" in capsys.readouterr().out
    assert "NOT LongBench" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["task"] == "pydoc_qa"


def test_unwrap_joins_prose_only() -> None:
    prose = "A line of prose that is long enough to have been wrapped,\nand post-\nmortem."
    first, *code = prose.replace("post-\nmortem", "its end").split("\n")
    assert pydoc.unwrap(prose.replace("post-\nmortem", "its end")) == f"{first} {code[0]}"
    table = "x = 1\ny = 2"
    assert pydoc.unwrap(f"{table}\n\n{table}") == f"{table}\n\n{table}"


def test_chunks_lose_nothing_but_white_space_between_them() -> None:
    text = "\n\n\n".join(f"    y = {i}\n    z = {i}" for i in range(40)) + "\n"
    chunks = common.split_context(text, WordTokenizer(), 24)
    assert len(chunks) > 3
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert all(chunk.startswith("    y") and chunk[-1].isdigit() for chunk in chunks)
    assert common.split_context("  \n", WordTokenizer(), 24) == []


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
    assert ("text-reader", "f1") not in rows


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


def test_arms(caplog: pytest.LogCaptureFixture) -> None:
    arms = make_arms(["none", "text", "text-reader", "ztok"], [4, 8], ["read", "text"])
    assert [arm.label for arm in arms] == ["none", "text", "text-reader", "ztok 4x", "ztok 8x"]
    assert [arm.adapter for arm in arms] == ["read", None, "text", "read", "read"]
    assert make_arms(["text-reader", "text"], [4], ["read"]) == [Arm("text", 1.0, None)]
    assert "text-reader is left out" in caplog.text
    short = {"peer": lambda question, chunks, budget: ""}
    arms = make_arms(["peer"], [4, 8, 4.0], ["read", "text"], short)
    assert [(arm.label, arm.adapter) for arm in arms] == [("peer 4x", "text"), ("peer 8x", "text")]
    with pytest.raises(DataError, match=r"'zip'; the arms are none, .*, ztok-focus, peer"):
        make_arms(["zip"], [4], ["read"], short)
    with pytest.raises(DataError, match=r"at least 1 .* not 0\.5"):
        make_arms(["ztok"], [0.5], ["read"])


def test_split_template() -> None:
    assert split_template("a {context} b {input}", input="{x}") == ("a ", " b {x}")
    with pytest.raises(DataError, match="exactly once"):
        split_template("no place", input="q")
    with pytest.raises(DataError, match="not one of input"):
        split_template("{context} {other}", input="q")


def test_cut_middle() -> None:
    tokenizer = WordTokenizer()
    text = " ".join(map(str, range(10)))
    assert cut_middle(text, 10, tokenizer) == (text, False)
    assert cut_middle(text, 4, tokenizer) == ("0 1 8 9", True)
    assert cut_middle(text, 1, tokenizer) == ("", True)


def test_sample_keeps_order_and_grows() -> None:
    items = list(range(100))
    small, large = sample(items, 5, 1), sample(items, 20, 1)
    assert small == sorted(small) and set(small) <= set(large)
    assert sample(items, None, 1) == items


def test_intervals() -> None:
    scores = [0.0, 100.0] * 100
    low, high = bootstrap_ci(scores, 3)
    assert (low, high) == bootstrap_ci(scores, 3)
    assert 40 < low < 50 < high < 60
    assert bootstrap_ci([7.0]) == (7, 7)
    assert stratified_ci([[0.0] * 5, [10.0] * 3]) == (5, 5)


def test_a_damaged_log_line_is_named(tmp_path: Path) -> None:
    PredictionLog(tmp_path, {"k": 1}).close()
    (tmp_path / "predictions.jsonl").write_text("nonsense\n")
    with pytest.raises(DataError, match="line 1 is damaged"):
        PredictionLog(tmp_path, {"k": 1})


def test_read_jsonl_keeps_odd_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"input": "a\u2028b"}, ensure_ascii=False) + "\n\n", "utf-8")
    assert read_jsonl(path, {"input": str}) == [{"input": "a\u2028b"}]


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
