"""Training passages from documents alone: the base LLM asks the questions and answers them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.codec.reader import ZReader
from ztok_rag.errors import DataError
from ztok_rag.training.passages import Passage

OPENINGS = ("What", "Who", "When", "Where", "How", "Why", "Which", "In what")
"""First words of generated questions, so that those of one passage differ."""

ASK_PROMPT = (
    "Read the text, then ask short questions that it answers.\n\n{text}\n\nQuestion: {opening}"
)

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
    progress: bool = True,
) -> list[Passage]:
    """Texts with questions that the plain base asks, and a reader of raw text answers.

    That reader is the adapter `text` where the checkpoint has one, else the plain base. What is
    generated goes to `cache`, a JSON Lines file, text by text, and is taken from there the next
    time.

    Args:
        reader: of the checkpoint to train from.
        texts: short enough to be compressed as one window.
        cache: file to keep and to go on from.
        per_text: questions asked of each text, fewer where the base asks none or repeats itself.
        progress: show a bar.
    """
    known: dict[str, list[list[str]]] = {}
    if cache.exists():
        for line in cache.read_text(encoding="utf-8").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:  # the line that an interruption cut short
                continue
            known[record["text"]] = record["questions"]
    cache.parent.mkdir(parents=True, exist_ok=True)
    cut_short = cache.exists() and not cache.read_bytes().endswith(b"\n")
    passages = []
    with cache.open("a", encoding="utf-8") as log:
        if cut_short:
            log.write("\n")
        bar = tqdm(texts, desc="Asking questions", unit="text", disable=not progress)
        for number, text in enumerate(bar):
            key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            if key not in known:
                first = number * per_text
                openings = [OPENINGS[(first + i) % len(OPENINGS)] for i in range(per_text)]
                known[key] = _ask(reader, text, openings)
                log.write(json.dumps({"text": key, "questions": known[key]}) + "\n")
                log.flush()
            passages.append(Passage(text, tuple((q, (a,)) for q, a in known[key])))
    return passages


def _ask(reader: ZReader, text: str, openings: Sequence[str]) -> list[list[str]]:
    """Pairs of a question, which starts with one of `openings`, and its answer."""
    ends = reader.generate(
        [ASK_PROMPT.format(text=text, opening=opening) for opening in openings],
        max_new_tokens=32,
        adapter=None,
        stop=["\n"],
    )
    asked = (opening + end for opening, end in zip(openings, ends, strict=True))
    questions = [q for q in dict.fromkeys(map(str.strip, asked)) if q.endswith("?")]
    if not questions:
        return []
    answers = reader.generate(
        [QA_TEMPLATE.format(context=text, question=question) for question in questions],
        max_new_tokens=32,
        adapter="text" if "text" in reader.adapters else None,
        stop=["\n"],
    )
    pairs = zip(questions, map(str.strip, answers), strict=True)
    return [[question, answer] for question, answer in pairs if answer]
