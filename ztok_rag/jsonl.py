"""Reading JSON Lines: one JSON object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ztok_rag.errors import DataError
from ztok_rag.files import decode, read_bytes, show

LONGEST_LINE = 2**26
"""Most characters of a line."""

_LINE_END = re.compile(r"\r\n|\n|\r")
_LONGEST_CAUSE = 200
_NAMED = 3


@dataclass
class OddRecords:
    """The odd records that a run goes on without.

    Attributes:
        found: file, line and cause of each.
    """

    found: list[str] = field(default_factory=list)

    def report(self) -> str:
        """How many were left out, and which are the first; empty if there are none."""
        if not self.found:
            return ""
        count = len(self.found)
        named = "; ".join(self.found[:_NAMED]) + (f"; and {count - _NAMED} more" * (count > _NAMED))
        return f"left out {count} odd record{'s' * (count != 1)}: {named}."


def read_jsonl(
    path: Path,
    required: Mapping[str, type] | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
    *,
    allow_empty: bool = False,
    any_text: bool = False,
    odd: OddRecords | None = None,
) -> list[dict[str, Any]]:
    """Read the records of a JSON Lines file. Blank lines are skipped.

    A record is odd if it is not a JSON object; has a key twice, a number that JSON does not know,
    half a surrogate pair or a NUL character; lacks a field; or fails `check`.

    Args:
        path: the file, in UTF-8, or in UTF-16 with a byte order mark; it may be a pipe, and `-`
            is standard input.
        required: fields that each record must have, and their types. `list` stands for a
            non-empty list of strings.
        check: called with each record; raises `ValueError` with the cause if it is odd.
        allow_empty: accept a file without records.
        any_text: accept NUL characters, as a model may have written them.
        odd: gets the odd records, and the others are returned; `None` makes them errors.

    Raises:
        DataError: the file cannot be read, a record is odd, or there is none. The message names
            the file, the line and the cause.
    """
    text = decode(read_bytes(path), path)
    return parse_jsonl(
        text, path, required, check, allow_empty=allow_empty, any_text=any_text, odd=odd
    )


def parse_jsonl(
    text: str,
    name: str | Path,
    required: Mapping[str, type] | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
    *,
    allow_empty: bool = False,
    any_text: bool = False,
    odd: OddRecords | None = None,
) -> list[dict[str, Any]]:
    """The records in the text of a JSON Lines file called `name`; the rest as in `read_jsonl`."""
    records = []
    # No other line separators end a record: JSON strings may contain them.
    for number, line in enumerate(_LINE_END.split(text), 1):
        if not line.strip():
            continue
        try:
            record = _parse(line, any_text)
            for key, kind in (required or {}).items():
                check_field(record, key, kind)
            if check is not None:
                check(record)
        except (ValueError, RecursionError) as error:
            message = f"{show(name)}, line {number}: {_cause(error)}"
            if odd is None:
                raise DataError(f"{message}.") from error
            odd.found.append(message)
        else:
            records.append(record)
    if not records and not allow_empty:
        left_out = "" if odd is None or not odd.found else f"; {odd.report().rstrip('.')}"
        raise DataError(f"{show(name)} holds no records{left_out}.")
    return records


def check_field(record: Mapping[str, Any], name: str, kind: type) -> None:
    """Check that a record has a field of a type, as `read_jsonl` does for `required`.

    Raises:
        ValueError: the field is missing or has another type.
    """
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    value: Any = record[name]
    if not isinstance(value, kind):
        raise ValueError(f"field {name!r} is not a {kind.__name__}")
    if isinstance(value, list) and not (value and all(isinstance(item, str) for item in value)):
        raise ValueError(f"field {name!r} is not a non-empty list of strings")


def check_strings(value: Any, *, any_text: bool = False) -> None:
    """Check that no string of a JSON value has half a surrogate pair, or a NUL character.

    Raises:
        ValueError: one has.
    """
    for text in _strings(value):
        if not any_text and "\0" in text:
            raise ValueError("it has a NUL character")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise ValueError(f"it has half a surrogate pair, {half}") from error


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `json.loads`.

    Raises:
        ValueError: a key stands in it twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands in it twice")
    return found


def no_constant(name: str) -> NoReturn:
    """Refuse NaN and infinities, for `json.loads`."""
    raise ValueError(f"{name} is not JSON")


def _parse(line: str, any_text: bool) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"it is longer than {LONGEST_LINE:,} characters")
    record = json.loads(line, object_pairs_hook=unique_keys, parse_constant=no_constant)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    if "\\u" in line:  # nothing else gives such characters: raw ones are not valid
        check_strings(record, any_text=any_text)
    return record


def _strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)


def _cause(error: Exception) -> str:
    """The message of an error, in one line of some length."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    cause = show(str(error))
    return cause if len(cause) <= _LONGEST_CAUSE else f"{cause[:_LONGEST_CAUSE]}…"
