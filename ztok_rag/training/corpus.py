"""Training passages from documents without questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ztok_rag.codec.base import tokenize_exactly
from ztok_rag.errors import DataError
from ztok_rag.files import is_pipe, show
from ztok_rag.training.passages import DataFile

_SUFFIXES = {".txt", ".md", ".rst", ".jsonl"}


def find_documents(folder: str | Path) -> list[DataFile]:
    """A folder's files of documents: `.txt`, `.md` and `.rst`, and `.jsonl` of `{text}`.

    Raises:
        DataError: there are none.
    """
    folder = Path(folder)
    if not folder.is_dir() and is_pipe(folder):
        return [DataFile(folder, is_corpus=True)]
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    found = [DataFile(file, is_corpus=True) for file in files if file.suffix in _SUFFIXES]
    if not found:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise DataError(
            f"{show(folder)} holds no documents; a corpus is a folder of {kinds} files."
        )
    return found


def read_documents(file: Path) -> list[str]:
    """The documents in a file: the text, or the `text` of each line of a `.jsonl` file.

    Raises:
        DataError: it cannot be read.
    """
    return [passage.text for passage in DataFile(file, is_corpus=True).read().passages]


def cut_passages(document: str, tokenizer: Any, tokens: int) -> Iterator[str]:
    """Pieces of at most about `tokens` tokens that end at a line or a sentence where they can."""
    starts = tokenize_exactly(tokenizer, [document])[0].starts.tolist()
    first = 0
    while first < len(starts):
        begin = starts[first]
        last = first + tokens
        end = starts[last] if last < len(starts) else len(document)
        if end < len(document):
            half = (begin + end) // 2
            stops = [document.rfind(mark, half, end) for mark in ("\n", ". ", " ")]
            end = next((stop + 1 for stop in stops if stop >= 0), end)
        if piece := document[begin:end].strip():
            yield piece
        while first < len(starts) and starts[first] < end:
            first += 1
