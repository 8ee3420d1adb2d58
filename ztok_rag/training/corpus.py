"""Training passages from documents alone: the raw-text reader asks and answers the questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ztok_rag.errors import DataError
from ztok_rag.reader import ZReader
from ztok_rag.training.data import Passage

OPENINGS = ("What", "Who", "When", "Where", "How", "Why", "Which", "In what")
"""First words of generated questions, so that those of one passage differ."""

_SUFFIXES = {".txt", ".md", ".rst", ".jsonl"}


def read_documents(folder: str | Path) -> list[str]:
    """Texts of a folder's `.txt`, `.md` and `.rst` files, and of `{text}` lines of `.jsonl`.

    Raises:
        DataError: there are none, or a file cannot be read.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    documents: list[str] = []
    for file in files:
        if file.suffix not in _SUFFIXES:
            continue
        try:
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".jsonl":
                documents += [json.loads(line)["text"] for line in text.split("\n") if line.strip()]
            else:
                documents.append(text)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"cannot read {file} ({type(error).__name__}: {error}); a corpus is UTF-8 text, "
                "or JSON Lines of objects with `text`."
            ) from error
    documents = [document for document in documents if document.strip()]
    if not documents:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise DataError(f"{folder} holds no documents; a corpus is a folder of {kinds} files.")
    return documents


def cut_passages(document: str, reader: ZReader, tokens: int) -> Iterator[str]:
    """Pieces of at most about `tokens` tokens that end at a line or a sentence where they can."""
    encoding = reader.tokenizer(
        document, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    starts = [start for start, _ in encoding["offset_mapping"]]
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


def ask_questions(
    reader: ZReader,
    texts: Sequence[str],
    cache: Path,
    *,
    per_text: int = 3,
    max_new_tokens: int = 48,
    progress: bool = True,
) -> list[Passage]:
    """Texts with questions and answers that a reader of raw text generates.

    It is the adapter `text` where the checkpoint has one, else the plain base. What is generated
    goes to `cache`, a JSON Lines file, text by text, and is taken from there the next time.

    Args:
        reader: of the checkpoint to train from.
        texts: short enough to be compressed as one window.
        cache: file to keep and to go on from.
        per_text: questions asked of each text; malformed ones are dropped.
        max_new_tokens: of a question and its answer.
        progress: show a bar.
    """
    adapter = "text" if "text" in reader.adapters else None
    known: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    if cache.exists():
        for line in cache.read_text(encoding="utf-8").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:  # the line that an interruption cut short
                continue
            known[record["text"]] = [(q, (a,)) for q, a in record["questions"]]
    cache.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(texts, desc="Asking questions", unit="text", disable=not progress)
    passages = []
    with cache.open("a", encoding="utf-8") as log:
        for number, text in enumerate(bar):
            key = hashlib.blake2b(f"{adapter}\0{text}".encode(), digest_size=16).hexdigest()
            if key not in known:
                openings = [
                    OPENINGS[(number * per_text + i) % len(OPENINGS)] for i in range(per_text)
                ]
                outputs = reader.generate(
                    [f"{text}\n\nQuestion: {opening}" for opening in openings],
                    max_new_tokens=max_new_tokens,
                    adapter=adapter,
                    stop=["\n\n", "\nQuestion"],
                )
                pairs = [parse(o + out) for o, out in zip(openings, outputs, strict=True)]
                known[key] = [(q, (a,)) for q, a in filter(None, pairs)]
                questions = [[q, a[0]] for q, a in known[key]]
                log.write(json.dumps({"text": key, "questions": questions}) + "\n")
                log.flush()
            passages.append(Passage(text, tuple(known[key])))
    return passages


def parse(generated: str) -> tuple[str, str] | None:
    """Question and answer of `… ?\\nAnswer: …`; `None` if it is not of that form."""
    question, mark, answer = generated.partition("\nAnswer:")
    question, answer = question.strip(), answer.strip().split("\n")[0]
    if not mark or not question.endswith("?") or "\n" in question or not answer:
        return None
    return question, answer
