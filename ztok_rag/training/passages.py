"""Training text and the questions asked of it, read from files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztok_rag.errors import DataError


@dataclass(frozen=True)
class Passage:
    """A text and the questions asked of it (none for unlabelled text)."""

    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...] = ()


def read_passages(path: str | Path) -> list[Passage]:
    """Read training text.

    Args:
        path: JSON Lines of `{context, question, answers}` (rows of one context are gathered) or
            of `{text}`; or a plain text file, each paragraph a passage; or a folder of these.

    Raises:
        DataError: the path is missing, or a record is malformed; names file and line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in {".jsonl", ".txt", ".md"})
        return [passage for file in files for passage in read_passages(file)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text ({error}).") from error
    if path.suffix != ".jsonl":
        return [Passage(part.strip()) for part in text.split("\n\n") if part.strip()]
    gathered: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            context, question = _parse_record(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: expected an object with `text`, or with `context`, "
                f"`question` and a non-empty list `answers` ({error})."
            ) from error
        questions = gathered.setdefault(context, [])
        if question is not None:
            questions.append(question)
    return [Passage(context, tuple(questions)) for context, questions in gathered.items()]


def _parse_record(record: Any) -> tuple[str, tuple[str, tuple[str, ...]] | None]:
    if "question" not in record:
        text = record["text"] if "text" in record else record["context"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the text is empty")
        return text, None
    context, question, answers = record["context"], record["question"], record["answers"]
    if not isinstance(context, str) or not context.strip() or not isinstance(question, str):
        raise ValueError("`context` and `question` must be non-empty strings")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError("`answers` must be a non-empty list of strings")
    return context, (question, tuple(answers))
