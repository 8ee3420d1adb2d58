"""Training text and the questions asked of it, read from files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztok_rag.errors import DataError

IntArray = NDArray[np.int64]

_LINES = (".jsonl", ".jsonl.gz")
_SUFFIXES = (*_LINES, ".txt", ".md")


@dataclass(frozen=True)
class Passage:
    """A text and the questions asked of it (none for unlabelled text)."""

    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class DataFile:
    """A file to train on, a set of its own.

    Attributes:
        path: see `read_passages`.
        share: how often it is drawn from, in parts of what its size alone would give.
        is_corpus: it holds whole documents without questions, to be cut into passages.
    """

    path: Path
    share: float = 1.0
    is_corpus: bool = False


def find_data(specs: Sequence[str]) -> list[DataFile]:
    """Files to train on.

    Args:
        specs: paths of files, or of folders of files; `PATH:SHARE` draws from the path so many
            times as often: 0.2 is a fifth, 2 is twice.

    Raises:
        DataError: a folder holds no data, or a share is not positive.
    """
    files = []
    for spec in specs:
        path, _, share = spec.rpartition(":")
        if not path or Path(spec).exists():
            path, share = spec, "1"
        try:
            times = float(share)
        except ValueError:
            times = -1.0
        if not 0 < times < float("inf"):
            raise DataError(f"{spec}: the share after the colon must be a number above 0.")
        found = _files(Path(path))
        if not found:
            raise DataError(f"{path} holds no training data; give {', '.join(_SUFFIXES)} files.")
        files += [DataFile(file, times) for file in found]
    return files


def near(indices: IntArray, index: int, reach: int = 8) -> IntArray:
    """Up to `reach` of the sorted `indices` on either side of `index`, about like things."""
    at = int(np.searchsorted(indices, index))
    beside = indices[max(0, at - reach) : at + reach + 1]
    others: IntArray = beside[beside != index]
    return others


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(_SUFFIXES))


def read_passages(path: str | Path) -> list[Passage]:
    """Read training text.

    Args:
        path: JSON Lines of `{context, question, answers}` (rows of one context are gathered) or
            of `{text}`, gzipped or not; or a plain text file, each paragraph a passage; or a
            folder of these.

    Raises:
        DataError: the path is missing, or a record is malformed; names file and line.
    """
    path = Path(path)
    if path.is_dir():
        return [passage for file in _files(path) for passage in read_passages(file)]
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text ({error}).") from error
    if not path.name.endswith(_LINES):
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
