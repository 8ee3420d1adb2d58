"""The reader of JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ztok_rag.errors import DataError
from ztok_rag.jsonl import read_jsonl


def test_read_jsonl_keeps_odd_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"input": "a\u2028b"}, ensure_ascii=False) + "\n\n", "utf-8")
    assert read_jsonl(path, {"input": str}) == [{"input": "a\u2028b"}]


def check(record: dict[str, Any]) -> None:
    if record["n"] < 0:
        raise ValueError("n is negative")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('{"n": 1}\n{', "line 2: Expecting property name"),
        ("[1]", "line 1: it is not a JSON object"),
        ("{}", "line 1: field 'n' is missing"),
        ('{"n": "1"}', "line 1: field 'n' is not a int"),
        ('{"n": -1}', "line 1: n is negative"),
        ("\n", "holds no records"),
    ],
)
def test_an_error_names_file_line_and_cause(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=cause) as error:
        read_jsonl(path, {"n": int}, check)
    assert str(path) in str(error.value)


def test_a_file_may_be_empty_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match="cannot read"):
        read_jsonl(path, allow_empty=True)
    path.touch()
    assert read_jsonl(path, allow_empty=True) == []
