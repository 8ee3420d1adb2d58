"""The reader of JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ztok_rag import jsonl
from ztok_rag.errors import DataError
from ztok_rag.jsonl import OddRecords, read_jsonl


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
        ('{"n": NaN}', "line 1: NaN is not JSON"),
        ('{"n": -Infinity}', "line 1: -Infinity is not JSON"),
        ('{"n": 1, "n": 2}', "line 1: key 'n' stands in it twice"),
        ('{"n": 1, "a": [{"b": 1, "b": 1}]}', "line 1: key 'b' stands in it twice"),
        ('{"n": 1, "a": "\\ud835"}', r"line 1: it has half a surrogate pair, \\ud835"),
        ('{"n": 1, "a": [{"\\udc00": 1}]}', r"line 1: it has half a surrogate pair, \\udc00"),
        ('{"n": 1, "a": "\\u0000"}', "line 1: it has a NUL character"),
        ('{"n": 1, "a": "\0"}', "line 1: Invalid control character"),
        ('{"n": ' + "[" * 10**5, "line 1: it is nested too deep"),
        ('{"n": ' + "1" * 5000 + "}", "line 1: Exceeds the limit"),
        ('{"n": 1}\r{"n": 1}\r\n\r\n{', "line 4: Expecting property name"),
    ],
)
def test_an_error_names_file_line_and_cause(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(DataError, match=cause) as error:
        read_jsonl(path, {"n": int}, check)
    assert str(path) in str(error.value)


def test_a_file_may_be_empty_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match="cannot read"):
        read_jsonl(path, allow_empty=True)
    path.touch()
    assert read_jsonl(path, allow_empty=True) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_of_other_editors(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(('{"n": 1, "a": "\u2192 \\ud835\\udd04"}' + end + '{"n": 2}').encode(encoding))
    first, second = read_jsonl(path, {"n": int})
    assert (first["a"], second["n"]) == ("\u2192 \U0001d504", 2)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for data, cause in (
        (b'{"n": 1}\xff', r"is not UTF-8 text \(byte 8\)"),
        (b"\xff\xfe\x00", "is not UTF-16 text"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=cause):
            read_jsonl(path)


def test_a_run_may_go_on_without_odd_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"n": 1}', "{", '{"n": "1"}', '{"n": -1}', "[]", '{"n": 2}']
    path.write_text("\n".join(lines), encoding="utf-8")
    odd = OddRecords()
    assert [record["n"] for record in read_jsonl(path, {"n": int}, check, odd=odd)] == [1, 2]
    report = odd.report()
    assert report.startswith(f"left out 4 odd records: {path}, line 2: Expecting")
    assert report.endswith("line 4: n is negative; and 1 more.")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="holds no records; left out 1 odd record: "):
        read_jsonl(path, odd=OddRecords())
    assert OddRecords().report() == ""


def test_messages_are_short_and_lines_of_some_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"n": "x" * 1000}), encoding="utf-8")

    def quote(record: dict[str, Any]) -> None:
        raise ValueError(f"odd {record['n']}")

    with pytest.raises(DataError) as error:
        read_jsonl(path, check=quote)
    assert len(str(error.value)) < len(str(path)) + 250
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 100)
    with pytest.raises(DataError, match="line 1: it is longer than 100 characters"):
        read_jsonl(path)


def test_what_a_model_wrote_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prediction": "a\0b"}), encoding="utf-8")
    assert read_jsonl(path, any_text=True) == [{"prediction": "a\0b"}]
