"""Training text as arrays of token ids on disk, made once and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from ztok_rag.codec.base import tokenize_exactly
from ztok_rag.errors import DataError
from ztok_rag.training.corpus import cut_passages
from ztok_rag.training.labels import first_place
from ztok_rag.training.passages import DataFile, Passage
from ztok_rag.training.passages import read_passages as read_passages  # callers find it here, too

IntArray = NDArray[np.int64]
IdArray = NDArray[np.int32]

SHORTEST = 20
"""Passages of fewer tokens are left out."""

PIECE = 400
"""Tokens of the pieces that long text without questions is cut into."""

_FORMAT = 1
_LONGEST_ANSWER = 64
_AT_ONCE = 256  # passages tokenized together


@dataclass
class Ragged:
    """Rows of token ids of different lengths, end to end.

    Attributes:
        ids: `[sum of lengths]` all rows.
        edges: `[rows + 1]` where each row begins, and the last ends.
    """

    ids: IdArray
    edges: IntArray

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, row: int) -> IdArray:
        return np.asarray(self.ids[self.edges[row] : self.edges[row + 1]])

    @classmethod
    def of(cls, rows: Sequence[ArrayLike]) -> Ragged:
        """Rows end to end."""
        parts = [np.asarray(row, np.int32) for row in rows]
        ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return cls(ids, np.cumsum([0, *map(len, parts)]))


@dataclass
class TrainingData:
    """Passages and questions as token ids.

    Attributes:
        folder: where they lie.
        passages: token ids of each passage.
        passage_set: `[passages]` number of the file that each is from.
        questions: token ids of each question, with a space before it.
        answers: of its answer, with a space before it.
        bare_answers: of its answer, without.
        question_passage: `[questions]` the passage each is about.
        question_set: `[questions]` number of the file it is from.
        question_span: `[questions, 2]` tokens of the passage where the answer stands; -1 where it
            stands nowhere.
        shares: of each file, `DataFile.share`.
    """

    folder: Path
    passages: Ragged
    passage_set: IntArray
    questions: Ragged
    answers: Ragged
    bare_answers: Ragged
    question_passage: IntArray
    question_set: IntArray
    question_span: IntArray
    shares: tuple[float, ...]


def prepare_data(
    files: Sequence[DataFile],
    tokenizer: Any,
    folder: Path,
    *,
    longest: int = 1100,
    progress: bool = True,
) -> TrainingData:
    """Tokenize files, or open what an earlier call made of the same ones.

    Args:
        files: what to train on.
        tokenizer: of the base LLM.
        folder: where data sets lie, each under a name that its content decides.
        longest: longer passages with questions are left out, others cut.
        progress: show a bar.

    Raises:
        DataError: a file cannot be read, or nothing is left to train on.
    """
    target = folder / _digest(files, tokenizer, longest)
    if not (target / "data.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "data.json").exists():
                _build(files, tokenizer, target, longest, progress)
    return load_data(target, [file.share for file in files])


def load_data(folder: Path, shares: Sequence[float]) -> TrainingData:
    """Map a data set that `prepare_data` made into memory."""

    def array(name: str) -> Any:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    def ragged(name: str) -> Ragged:
        return Ragged(array(name), np.array(array(f"{name}_edges")))

    names = ("passage_set", "question_passage", "question_set", "question_span")
    return TrainingData(
        folder=folder,
        passages=ragged("passages"),
        questions=ragged("questions"),
        answers=ragged("answers"),
        bare_answers=ragged("bare_answers"),
        shares=tuple(shares),
        **{name: np.array(array(name)) for name in names},
    )


def _digest(files: Sequence[DataFile], tokenizer: Any, longest: int) -> str:
    """16 hex digits of all that decides a data set."""
    digest = hashlib.blake2b(json.dumps([_FORMAT, longest]).encode(), digest_size=8)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for file in files:
        digest.update(file.read().digest + bytes([file.is_corpus]))
    return digest.hexdigest()


@dataclass
class _Rows:
    """What `_build` gathers."""

    passages: list[IntArray] = field(default_factory=list)
    passage_set: list[int] = field(default_factory=list)
    questions: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    bare_answers: list[list[int]] = field(default_factory=list)
    question_passage: list[int] = field(default_factory=list)
    question_set: list[int] = field(default_factory=list)
    question_span: list[tuple[int, int]] = field(default_factory=list)


def _build(
    files: Sequence[DataFile], tokenizer: Any, target: Path, longest: int, progress: bool
) -> None:
    rows = _Rows()
    seen: dict[str, tuple[int, IntArray] | None] = {}
    bar = tqdm(desc="Tokenizing", unit="passage", disable=not progress)
    for number, file in enumerate(files):
        passages = list(_passages(file, tokenizer, longest))
        for at in range(0, len(passages), _AT_ONCE):
            _add(passages[at : at + _AT_ONCE], number, tokenizer, longest, rows, seen)
            bar.update(len(passages[at : at + _AT_ONCE]))
    bar.close()
    if not rows.passages:
        raise DataError(
            f"there is nothing to train on: no passage has {SHORTEST} to {longest} tokens; "
            "give other data."
        )
    _write(rows, target)


def _passages(file: DataFile, tokenizer: Any, longest: int) -> Iterator[Passage]:
    """A file's passages; text without questions in pieces, where it is long."""
    most = min(PIECE, longest)
    for passage in file.read().passages:
        # A token has a character at least, so the short need not be tokenized to tell.
        if passage.questions or len(passage.text) <= most:
            yield passage
        else:
            yield from map(Passage, cut_passages(passage.text, tokenizer, most))


def _add(
    passages: Sequence[Passage],
    number: int,
    tokenizer: Any,
    longest: int,
    rows: _Rows,
    seen: dict[str, tuple[int, IntArray] | None],
) -> None:
    """Tokenize passages of file `number` with their questions; a text is kept once."""
    new = list(dict.fromkeys(p.text for p in passages if p.text not in seen))
    for text, tokens in zip(new, tokenize_exactly(tokenizer, new), strict=True):
        seen[text] = None
        if SHORTEST <= len(tokens.ids) <= longest:
            seen[text] = (len(rows.passages), tokens.spans)
            rows.passages.append(tokens.ids)
            rows.passage_set.append(number)
    asked: list[str] = []
    answered: list[str] = []
    for passage in passages:
        if (found := seen[passage.text]) is None:
            continue
        place, spans = found
        for question, answers in passage.questions:
            if answer := answers[0].strip():
                asked.append(" " + question.strip())
                answered.append(answer)
                rows.question_passage.append(place)
                rows.question_set.append(number)
                rows.question_span.append(first_place(passage.text, answer, spans))
    if asked:
        spaced = [" " + answer for answer in answered]
        rows.questions += _ids(tokenizer, asked)
        rows.answers += [ids[:_LONGEST_ANSWER] for ids in _ids(tokenizer, spaced)]
        rows.bare_answers += [ids[:_LONGEST_ANSWER] for ids in _ids(tokenizer, answered)]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    encoding = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return encoding["input_ids"]  # type: ignore[no-any-return]


def _write(rows: _Rows, target: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for name in ("passages", "questions", "answers", "bare_answers"):
            ragged = Ragged.of(getattr(rows, name))
            np.save(temporary / f"{name}.npy", ragged.ids)
            np.save(temporary / f"{name}_edges.npy", ragged.edges)
        for name in ("passage_set", "question_passage", "question_set"):
            np.save(temporary / f"{name}.npy", np.array(getattr(rows, name), np.int64))
        spans = np.array(rows.question_span, np.int64).reshape(-1, 2)
        np.save(temporary / "question_span.npy", spans)
        counts = {
            "passages": len(rows.passages),
            "tokens": sum(map(len, rows.passages)),
            "questions": len(rows.questions),
        }
        (temporary / "data.json").write_text(json.dumps(counts) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
