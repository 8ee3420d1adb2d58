"""Questions over a corpus: retrieve paragraphs, then answer from text and from Z-tokens.

    python benchmarks/rag_qa.py --data FILE.jsonl --output DIR

Each record of the file has `context`, `question` and `answers`. A `.json` file is read as a
LlamaIndex `LabelledRagDataset`. The corpus is all distinct contexts of the file. With
`--documents`, it is the chunks of those documents, and questions need no context. Answers are
scored by token F1 and exact match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    chunk_size,
    load_compressor,
    make_parser,
    odd_records,
    peer_differences,
    positive,
    report_odd,
    run,
    run_script,
    split_context,
)
from embed import embed_queries, embed_texts
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.evaluation import (
    QUESTION_FIELDS,
    Arm,
    PredictionLog,
    Question,
    Row,
    check_question,
    digest,
    make_question,
    paired_difference,
    read_rag_dataset,
    sample,
    summarize,
)
from ztok_rag.evaluation.datasets import short_names
from ztok_rag.files import show
from ztok_rag.jsonl import OddRecords, read_jsonl

_DOCUMENT_FIELDS = ("text", "document", "context", "content")
"""Fields in which a record of `--documents` may have its text."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = make_parser(
        "Answer questions over a corpus from retrieved text and from Z-tokens.", k=1, limit=200
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="JSON Lines; - is standard input"
    )
    parser.add_argument(
        "--documents",
        type=Path,
        default=None,
        metavar="FILE",
        help="JSON Lines of documents (`text`, and `title` if they have one) to retrieve from, "
        "in place of the questions' own contexts",
    )
    parser.add_argument(
        "--chunk-tokens",
        type=chunk_size,
        default=256,
        metavar="N",
        help="tokens of the base LLM per chunk of --documents (default: 256)",
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="length of an answer"
    )
    options = parser.parse_args(arguments)
    odd = odd_records(options)
    documents = None if options.documents is None else read_documents(options.documents, odd)
    records = _read_questions(options.data, with_context=documents is None, odd=odd)
    report_odd(odd)
    (task,) = short_names([options.data])
    chosen = sample(list(enumerate(records)), options.limit, options.seed)
    questions = [
        make_question(task, number, record, options.max_new_tokens) for number, record in chosen
    ]
    settings = {
        "data": digest(records),
        "template": digest(QA_TEMPLATE),
        "max_new_tokens": options.max_new_tokens,
    }
    compressor = load_compressor(options)
    if documents is None:
        passages = list(dict.fromkeys(record["context"] for record in records))
        corpus = f"all its {len(passages)} distinct paragraphs"
    else:
        split = partial(
            split_context, tokenizer=compressor.tokenizer, chunk_tokens=options.chunk_tokens
        )
        passages = list(dict.fromkeys(chunk for text in documents for chunk in split(text)))
        corpus = (
            f"the {len(passages)} chunks, of up to {options.chunk_tokens} tokens, of "
            f"{len(documents)} documents of {show(options.documents)}"
        )
        settings |= {"documents": digest(documents), "chunk_tokens": options.chunk_tokens}
    run(
        options,
        benchmark="rag_qa",
        note=f"{len(questions)} of {len(records)} questions of {show(options.data)}; the "
        f"{' or '.join(map(str, options.k))} best of {corpus} by all-MiniLM-L6-v2.",
        tasks={task: questions},
        settings=settings,
        compressor=compressor,
        retrieve=Retriever(passages),
        best_first=True,
        summarize=partial(_rows, questions, options.seed),
    )


def _read_questions(
    path: Path, *, with_context: bool, odd: OddRecords | None
) -> list[dict[str, Any]]:
    """Read questions with their answers and, if wanted, their contexts.

    Args:
        path: of the file.
        with_context: whether questions need their contexts.
        odd: gets the odd records, which are left out; `None` makes them errors.

    Raises:
        DataError: the file cannot be read, or a record is malformed.
    """
    if path.suffix == ".json":
        records = read_rag_dataset(path, odd)
    elif with_context:
        return read_jsonl(path, QUESTION_FIELDS, check_question, odd=odd)
    else:
        fields = {name: kind for name, kind in QUESTION_FIELDS.items() if name != "context"}
        records = read_jsonl(path, fields, odd=odd)
    if with_context:
        return records
    return [{name: record[name] for name in ("question", "answers")} for record in records]


def read_documents(path: Path, odd: OddRecords | None = None) -> list[str]:
    """Read the texts of a file of documents, each after its title if it has one.

    Args:
        path: of the file.
        odd: gets the odd records, which are left out; `None` makes them errors.

    Raises:
        DataError: the file cannot be read, or a record has no text.
    """

    def check(record: Mapping[str, Any]) -> None:
        if _field(record, _DOCUMENT_FIELDS) is None:
            raise ValueError(f"it has no text in any of the fields {', '.join(_DOCUMENT_FIELDS)}")

    texts = []
    for record in read_jsonl(path, check=check, odd=odd):
        text = _field(record, _DOCUMENT_FIELDS) or ""
        title = _field(record, ("title",))
        texts.append(f"{title}\n\n{text}" if title and not text.startswith(title) else text)
    return texts


def _field(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the fields that is not blank."""
    values = (record.get(name) for name in names)
    return next((v for v in values if isinstance(v, str) and v.strip()), None)


class Retriever:
    """Retrieves the `k` nearest passages of each question, the nearest first.

    Passages are indexed at first use.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self.passages = passages
        self._index: Any = None

    def __call__(self, questions: Sequence[Question], k: int) -> list[list[str]]:
        import faiss

        k = min(k, len(self.passages))
        if not k:
            return [[] for _ in questions]
        if self._index is None:
            vectors = embed_texts(self.passages)
            self._index = faiss.IndexFlatIP(vectors.shape[1])
            self._index.add(vectors)
        _, found = self._index.search(embed_queries([q.text for q in questions]), k)
        return [[self.passages[i] for i in row] for row in found]


def _rows(
    questions: Sequence[Question], seed: int, arms: Sequence[Arm], log: PredictionLog, k: int
) -> list[Row]:
    """Scores of all arms, then paired differences from no context, and from each peer."""
    tasks = {questions[0].task: questions}
    rows = summarize("rag_qa", tasks, arms, log, k=k, seed=seed)
    none = next((arm for arm in arms if arm.name == "none"), None)
    rows += [
        paired_difference(questions, arm, none, log, "f1", benchmark="rag_qa", k=k, seed=seed)
        for arm in arms
        if none is not None and arm is not none
    ]
    return rows + peer_differences(tasks, arms, log, benchmark="rag_qa", k=k, seed=seed)


if __name__ == "__main__":
    run_script(main)
