"""Training text and the questions asked of it, read from files."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztok_rag.errors import DataError
from ztok_rag.files import STANDARD_INPUT, decode, is_pipe, line_feeds, read_bytes, show
from ztok_rag.jsonl import OddRecords, check_field, parse_jsonl

IntArray = NDArray[np.int64]

_LINES = (".jsonl", ".jsonl.gz")
_SUFFIXES = (*_LINES, ".txt", ".md")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Passage:
    """A text and the questions asked of it (none for unlabelled text)."""

    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Content:
    """What a file held when it was read.

    Attributes:
        passages: in order; of a corpus, whole documents.
        digest: of the bytes of the file.
    """

    passages: list[Passage]
    digest: bytes


@dataclass(frozen=True)
class DataFile:
    """A file to train on, a set of its own. It is opened once, so that it may be a pipe.

    Attributes:
        path: see `read_passages`.
        share: how often it is drawn from, in parts of what its size alone would give.
        is_corpus: it holds whole documents without questions, to be cut into passages.
    """

    path: Path
    share: float = 1.0
    is_corpus: bool = False
    _read: list[Content] = field(default_factory=list, init=False, repr=False, compare=False)

    def read(self, odd: OddRecords | None = None) -> Content:
        """What it holds; the first call reads it.

        Args:
            odd: gets its odd records, which are left out; `None` makes them errors.

        Raises:
            DataError: it cannot be read, or a record is odd.
        """
        if not self._read:
            data = read_bytes(self.path)
            parse = _documents if self.is_corpus else _passages
            digest = hashlib.blake2b(data).digest()
            self._read.append(Content(parse(data, self.path, odd), digest))
        return self._read[0]


def find_data(specs: Sequence[str]) -> list[DataFile]:
    """Files to train on.

    Args:
        specs: paths of files, or of folders of files, `-` for standard input; `PATH:SHARE` draws
            from the path so many times as often: 0.2 is a fifth, 2 is twice.

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
            raise DataError(f"{show(spec)}: the share after the colon must be a number above 0.")
        found = _files(Path(path))
        if not found:
            raise DataError(
                f"{show(path)} holds no training data; give {', '.join(_SUFFIXES)} files."
            )
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
            folder of these. What comes through a pipe is JSON Lines if it begins like an object.

    Raises:
        DataError: the path is missing, or a record is malformed; names file and line.
    """
    return [p for file in _files(Path(path)) for p in DataFile(file).read().passages]


def _passages(data: bytes, path: Path, odd: OddRecords | None) -> list[Passage]:
    text = _text(data, path)
    if not _holds_lines(text, path):
        parts = (part.strip() for part in text.split("\n\n"))
        return [Passage(part) for part in parts if part]
    gathered: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for record in parse_jsonl(text, path, check=_check_passage, odd=odd, allow_empty=True):
        if "question" in record:
            asked = gathered.setdefault(record["context"], [])
            asked.append((record["question"], tuple(record["answers"])))
        else:
            gathered.setdefault(record["text" if "text" in record else "context"], [])
    return [Passage(context, tuple(questions)) for context, questions in gathered.items()]


def _documents(data: bytes, path: Path, odd: OddRecords | None) -> list[Passage]:
    text = _text(data, path)
    if not _holds_lines(text, path):
        return [Passage(text)]
    records = parse_jsonl(text, path, {"text": str}, odd=odd, allow_empty=True)
    return [Passage(record["text"]) for record in records]


def _text(data: bytes, path: Path) -> str:
    """The text of a file, unpacked, with its line ends as line feeds."""
    is_packed = path.suffix == ".gz" or (_is_nameless(path) and data.startswith(_GZIP))
    try:
        return line_feeds(decode(gzip.decompress(data) if is_packed else data, path))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {show(path)}: {error}; give a whole file of gzip, or the unpacked one."
        ) from error


def _holds_lines(text: str, path: Path) -> bool:
    """Whether a file is JSON Lines: by its name, or by its beginning if it has none."""
    return path.name.endswith(_LINES) or (_is_nameless(path) and text.lstrip()[:1] == "{")


def _is_nameless(path: Path) -> bool:
    is_device = is_pipe(path) or path.is_relative_to("/dev")  # as /dev/stdin, which may be a file
    return str(path) == STANDARD_INPUT or (not path.suffix and is_device)


def _check_passage(record: Mapping[str, Any]) -> None:
    """Check a record of training text.

    Raises:
        ValueError: it is malformed.
    """
    asks = "question" in record
    field_ = "context" if asks or "text" not in record else "text"
    if field_ not in record:
        raise ValueError("it has neither a 'text' nor a 'context' with 'question' and 'answers'")
    kinds: dict[str, type] = {field_: str}
    if asks:
        kinds |= {"question": str, "answers": list}
    for name, kind in kinds.items():
        check_field(record, name, kind)
    if not record[field_].strip():
        raise ValueError(f"field {field_!r} is empty")


def read_all(files: Iterable[DataFile], odd: OddRecords | None = None) -> None:
    """Read files, as `DataFile.read`, so that what is wrong with them shows before other work."""
    for file in files:
        file.read(odd)
