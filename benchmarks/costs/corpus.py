"""The text that is measured: as one long text, as chunks, and questions about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ztok_rag.errors import DataError
from ztok_rag.files import show
from ztok_rag.jsonl import OddRecords, read_jsonl

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor

TEXT_FIELDS = ("context", "text", "document")
LONGEST_QUESTION = 300
"""Most characters of a question. Longer inputs are documents, as in some tasks of LongBench."""

MIDDLING = (60, 400)
"""Fewest and most tokens of a context that `draw_records` takes."""


@dataclass(frozen=True)
class Asked:
    """A question, its known reference answers, and the character at which its text ends."""

    question: str
    answers: tuple[str, ...] = ()
    end: int = 0


@dataclass
class Corpus:
    """The text of all records, as one string and in chunks.

    Attributes:
        text: all of it.
        offsets: character span of each token of the text.
        chunks: in order, each of at most `chunk_tokens` tokens, cut between words.
        ends: the character at which each chunk ends.
        questions: those of the records, in order.
    """

    text: str
    offsets: list[tuple[int, int]]
    chunks: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)

    def head(self, tokens: int) -> str:
        """The text of the first `tokens` tokens."""
        return self.text[: self.offsets[tokens - 1][1]]

    def asked(self, end: int, number: int) -> list[Asked]:
        """`number` questions whose text ends before character `end`, repeated if there are fewer.

        If there are none, they are made from the first words of chunks.
        """
        found = [asked for asked in self.questions if asked.end <= end]
        if not found:
            openings = [" ".join(chunk.split()[:12]) for chunk in self.chunks[:number]]
            found = [Asked(f"What is said about this: {opening}?") for opening in openings]
        return [found[i % len(found)] for i in range(number)]


def draw_records(
    records: Sequence[dict[str, Any]],
    source: Path,
    compressor: ZCompressor,
    *,
    limit: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Draw records with contexts of a middling length.

    Args:
        records: to draw from.
        source: where they are from, for the error.
        compressor: counts tokens.
        limit: how many.
        seed: of the draw.

    Raises:
        DataError: there are not so many.
    """
    least, most = MIDDLING
    chosen: list[dict[str, Any]] = []
    for number in np.random.default_rng(seed).permutation(len(records)):
        if least <= compressor.count_tokens(records[number].get("context", "")) <= most:
            chosen.append(records[number])
        if len(chosen) == limit:
            return chosen
    raise DataError(
        f"{show(source)} has {len(chosen)} contexts of {least} to {most} tokens, and --limit is "
        f"{limit}; give more, or a smaller --limit."
    )


def read_records(path: Path, odd: OddRecords | None = None) -> list[dict[str, Any]]:
    """Read the records of a file, or of all `*.jsonl` files of a folder.

    Args:
        path: of the file or the folder.
        odd: gets the odd records, which are left out; `None` makes them errors.

    Raises:
        DataError: there is no record, or one has no text.
    """
    files = sorted(p for p in path.glob("*.jsonl") if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"{show(path)} holds no *.jsonl file; give --data a file, or a folder of them."
        )

    def check(record: dict[str, Any]) -> None:
        if _text_of(record) is None:
            raise ValueError(f"it has no text in a field {', '.join(map(repr, TEXT_FIELDS))}")

    return [record for file in files for record in read_jsonl(file, check=check, odd=odd)]


def _text_of(record: Mapping[str, Any]) -> str | None:
    texts = (record.get(name) for name in TEXT_FIELDS)
    return next((t for t in texts if isinstance(t, str) and t.strip()), None)


def _question_of(record: Mapping[str, Any], end: int) -> Asked | None:
    question = record.get("question") or record.get("input")
    if not isinstance(question, str) or not 0 < len(question.strip()) <= LONGEST_QUESTION:
        return None
    answers = record.get("answers")
    known = answers if isinstance(answers, list) else []
    return Asked(question.strip(), tuple(a for a in known if isinstance(a, str)), end)


def make_corpus(
    records: Sequence[Mapping[str, Any]], tokenizer: Any, tokens: int, chunk_tokens: int
) -> Corpus:
    """Join the distinct texts of records, in order, until there are at least `tokens` tokens.

    Raises:
        DataError: the records hold fewer tokens.
    """
    parts: list[str] = []
    ends: dict[str, int] = {}
    questions: list[Asked] = []
    length = characters = 0
    for record in records:
        text = str(_text_of(record)).strip()
        if text not in ends:
            if length >= tokens:
                continue
            parts.append(text)
            length += len(_encode(tokenizer, text))
            characters += len(text) + 2
            ends[text] = characters - 2
        if asked := _question_of(record, ends[text]):
            questions.append(asked)
    if length < tokens:
        raise DataError(
            f"--data holds {length} tokens of text and {tokens} are needed; give more text, or "
            "smaller --lengths or --chunks."
        )
    text = "\n\n".join(parts)
    corpus = Corpus(text, _encode(tokenizer, text), questions=questions)
    _cut(corpus, tokenizer, chunk_tokens)
    return corpus


def _encode(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """The character span of each token."""
    spans: list[tuple[int, int]] = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    return spans


def _cut(corpus: Corpus, tokenizer: Any, chunk_tokens: int) -> None:
    """Fill in the chunks. A shorter rest at the end is left out."""
    at = 0
    while at + chunk_tokens < len(corpus.offsets):
        end = at + chunk_tokens
        while end > at + chunk_tokens // 2:
            start, stop = corpus.offsets[at][0], corpus.offsets[end][0]
            chunk = corpus.text[start:stop]
            between_words = corpus.text[stop].isspace() or corpus.text[stop - 1].isspace()
            # A text on its own may take more tokens than inside a longer one.
            if between_words and len(_encode(tokenizer, chunk)) <= chunk_tokens:
                break
            end -= 1
        corpus.chunks.append(chunk)
        corpus.ends.append(stop)
        at = end
