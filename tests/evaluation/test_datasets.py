"""Files of questions and files of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ztok_rag.errors import DataError
from ztok_rag.evaluation import datasets, read_rag_dataset
from ztok_rag.evaluation.datasets import read_datasets, short_names
from ztok_rag.jsonl import OddRecords

QUESTION = {
    "context": "The mill on Reed Lane was built in 1902.",
    "question": "When was the mill built?",
    "answers": ["1902"],
}
TEXT = {"text": "Rain fell all night."}


def write(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({"title": "x"}, "neither a 'text' nor a 'question'"),
        ({"text": "Rain."}, "no 'question', unlike the file's first record"),
        ({"context": "c", "question": "q"}, "field 'answers' is missing"),
        ({"context": " ", "question": "q", "answers": ["a"]}, "field 'context' is empty"),
        ({"context": "c", "question": "q", "answers": "a"}, "field 'answers' is not a list"),
    ],
)
def test_a_malformed_record_names_file_line_and_cause(
    tmp_path: Path, record: object, cause: str
) -> None:
    path = write(tmp_path / "a.jsonl", [QUESTION, record])
    with pytest.raises(DataError, match=f"line 2: .*{cause}") as error:
        read_datasets([path])
    assert str(path) in str(error.value)


def test_a_file_of_texts_holds_texts_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [TEXT, QUESTION])
    with pytest.raises(DataError, match="line 2: it has a 'question'"):
        read_datasets([path])
    write(path, [{"text": 3}])
    with pytest.raises(DataError, match="line 1: field 'text' is not a str"):
        read_datasets([path])


def test_odd_records_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": " "}', '{"question": "Q?", "context": "C.", "answers": ["A"]}', "{"]
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    odd = OddRecords()
    (data,) = read_datasets([path], odd=odd)
    # An odd first record does not decide what the file holds.
    assert data.has_questions and len(data.records) == 1 and len(odd.found) == 2
    with pytest.raises(DataError, match="line 1: field 'text' is empty"):
        read_datasets([path])


def test_pipes_have_the_same_names_in_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [Path("-"), tmp_path / "b.jsonl", tmp_path / "63"]
    monkeypatch.setattr(datasets, "is_pipe", lambda path: path.suffix != ".jsonl")
    assert short_names(paths) == ["pipe 1", f"{tmp_path.name}/b", "pipe 2"]


def test_odd_examples_of_a_rag_dataset(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    good = {"query": "Q?", "reference_contexts": ["C."], "reference_answer": "A"}
    for value, cause in (
        ({"examples": [good, 5]}, "example 1: it is not a JSON object"),
        ({"examples": [good, {**good, "query": "\ud835"}]}, "example 1: it has half a surrogate"),
        ({"examples": [good, {}]}, "example 1: field 'query' is missing"),
    ):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
        with pytest.raises(DataError, match=cause):
            read_rag_dataset(path)
        odd = OddRecords()
        assert len(read_rag_dataset(path, odd)) == 1 and len(odd.found) == 1
    path.write_text('{"examples": {}}', encoding="utf-8")
    with pytest.raises(DataError, match="'examples' is not a list"):
        read_rag_dataset(path)


def test_tasks_are_those_that_the_data_allow(tmp_path: Path) -> None:
    data = [write(tmp_path / "qa.jsonl", [QUESTION]), write(tmp_path / "notes.jsonl", [TEXT])]
    questions, notes = read_datasets([*data, data[0]])
    assert questions.tasks == ("qa", "reconstruction") and notes.tasks == ("reconstruction",)
    with pytest.raises(DataError, match=r"notes\.jsonl holds texts without questions"):
        read_datasets(data, ["qa"])
    with pytest.raises(DataError, match="unknown task 'speed'; the tasks are qa, reconstruction"):
        read_datasets(data, ["speed"])
    (tmp_path / "set").mkdir()
    (tmp_path / "other" / "set").mkdir(parents=True)
    paths = [write(tmp_path / part / "x.jsonl", [TEXT]) for part in ("set", "other/set")]
    assert len({dataset.name for dataset in read_datasets(paths)}) == 2
