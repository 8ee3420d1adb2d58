"""Files of questions and files of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ztok_rag.errors import DataError
from ztok_rag.evaluation.datasets import read_datasets

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
