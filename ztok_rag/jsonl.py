"""Reading JSON Lines: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ztok_rag.errors import DataError


def read_jsonl(
    path: Path,
    required: Mapping[str, type] | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
    *,
    allow_empty: bool = False,
) -> list[dict[str, Any]]:
    """Read the records of a JSON Lines file. Blank lines are skipped.

    Args:
        path: the file, in UTF-8.
        required: fields that each record must have, and their types. `list` stands for a
            non-empty list of strings.
        check: called with each record; raises `ValueError` with the cause if it is malformed.
        allow_empty: accept a file without records.

    Raises:
        DataError: the file cannot be read, a record is malformed, or there is none. The message
            names the file, the line and the cause.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}); give a JSON Lines file.") from error
    records = []
    # Only "\n" ends a record: JSON strings may contain other line separators.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is not a JSON object")
            for name, kind in (required or {}).items():
                check_field(record, name, kind)
            if check is not None:
                check(record)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from error
        records.append(record)
    if not records and not allow_empty:
        raise DataError(f"{path} holds no records.")
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
