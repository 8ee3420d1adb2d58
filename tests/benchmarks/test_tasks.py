"""The tasks of `longbench.py`: records, templates, metrics, and the small set without data."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
from stand_in import TEMPLATES, write, write_longbench

from tasks import pydoc
from tasks.download import download
from tasks.kinds import LONGBENCH, make_question
from tasks.records import load_config, load_task
from ztok_rag.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_longbench(tmp_path / "data")
    return tmp_path / "data"


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
        load_task(data, "hotpotqa")
    assert str(path) in str(error.value)


def test_records_of_some_tasks_need_more(data: Path) -> None:
    record = {"input": "q", "context": "c", "answers": ["City"], "all_classes": None}
    for task, cause in (("trec", "all_classes"), ("passage_retrieval_en", "Paragraph 7")):
        write(data / f"{task}.jsonl", [record])
        with pytest.raises(DataError, match=f"line 1: .*{cause}"):
            load_task(data, task)
    write(data / "qasper.jsonl", [{**record, "context": " "}])
    with pytest.raises(DataError, match="line 1: the context is empty"):
        load_task(data, "qasper")


def test_quality_comes_in_the_format_of_l_eval(tmp_path: Path) -> None:
    question = "Who left?\n\n (A) The keeper \n (B)  The engineer\nand her son \n (C) Nobody "
    asked = {"question": question, "answer": "(B) The engineer and her son\n"}
    story = {"id": "story", "document": "A long story.", "questions": [asked]}
    file = tmp_path / "leval_quality.jsonl"
    file.write_text(json.dumps(story) + "\n", encoding="utf-8")
    (record,) = load_task(tmp_path, "quality")
    assert record["all_classes"] == [
        "(A) The keeper",
        "(B)  The engineer\nand her son",
        "(C) Nobody",
    ]
    assert record["answers"] == record["all_classes"][1:2]
    assert "{input}" in load_config(tmp_path, None, ["quality"])[0]["quality"]

    story["questions"] = [{**asked, "answer": "(D) The cook"}]
    file.write_text(json.dumps(story) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: the answer .* not among"):
        load_task(tmp_path, "quality")


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
        load_task(data, "qasper")
    (data / "dataset2prompt.json").unlink()
    with pytest.raises(DataError, match=r"dataset2prompt\.json"):
        load_config(data, None, ["lcc"])
    own = tmp_path / "own.json"
    own.write_text(json.dumps(TEMPLATES))
    assert load_config(data, own, ["lcc"])[0] == TEMPLATES
    with pytest.raises(DataError, match="no entry of type str for the task qasper"):
        load_config(data, own, ["qasper"])


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


def test_unwrap_joins_prose_only() -> None:
    prose = "A line of prose that is long enough to have been wrapped,\nand post-\nmortem."
    first, *code = prose.replace("post-\nmortem", "its end").split("\n")
    assert pydoc.unwrap(prose.replace("post-\nmortem", "its end")) == f"{first} {code[0]}"
    table = "x = 1\ny = 2"
    assert pydoc.unwrap(f"{table}\n\n{table}") == f"{table}\n\n{table}"
