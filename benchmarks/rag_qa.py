"""Questions over a corpus: retrieve paragraphs, then answer from text and from Z-tokens.

    python benchmarks/rag_qa.py --data FILE.jsonl --output DIR

Each record of the file has `context`, `question` and `answers`; a `.json` file is taken for a
LlamaIndex `LabelledRagDataset`. The corpus is every distinct
context of the file. Answers are scored by token F1 and exact match.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    embed_queries,
    embed_texts,
    load_compressor,
    make_parser,
    positive,
    run,
    run_script,
)
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
    read_jsonl,
    read_rag_dataset,
    sample,
    summarize,
)
from ztok_rag.prompts import QA_TEMPLATE


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = make_parser(
        "Answer questions over a corpus from retrieved text and from Z-tokens.", k=1, limit=200
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSON Lines")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="length of an answer"
    )
    options = parser.parse_args(arguments)
    if options.data.suffix == ".json":
        records = read_rag_dataset(options.data)
    else:
        records = read_jsonl(options.data, QUESTION_FIELDS, check_question)
    task = f"{options.data.resolve().parent.name}/{options.data.stem}"
    chosen = sample(list(enumerate(records)), options.limit, options.seed)
    questions = [
        make_question(task, number, record, options.max_new_tokens) for number, record in chosen
    ]
    passages = list(dict.fromkeys(record["context"] for record in records))
    compressor = load_compressor(options)
    run(
        options,
        benchmark="rag_qa",
        note=f"{len(questions)} of {len(records)} questions of {options.data}; the "
        f"{options.k} best of all its {len(passages)} distinct paragraphs by all-MiniLM-L6-v2.",
        tasks={task: questions},
        settings={
            "data": digest(records),
            "template": digest(QA_TEMPLATE),
            "max_new_tokens": options.max_new_tokens,
        },
        compressor=compressor,
        retrieve=Retriever(passages, options.k),
        summarize=partial(_rows, questions, options.k, options.seed),
    )


class Retriever:
    """The `k` nearest passages of each question, the nearest first; indexed at first use."""

    def __init__(self, passages: Sequence[str], k: int) -> None:
        self.passages = passages
        self.k = min(k, len(passages))
        self._index: Any = None

    def __call__(self, questions: Sequence[Question]) -> list[list[str]]:
        import faiss

        if not self.k:
            return [[] for _ in questions]
        if self._index is None:
            vectors = embed_texts(self.passages)
            self._index = faiss.IndexFlatIP(vectors.shape[1])
            self._index.add(vectors)
        _, found = self._index.search(embed_queries([q.text for q in questions]), self.k)
        return [[self.passages[i] for i in row] for row in found]


def _rows(
    questions: Sequence[Question], k: int, seed: int, arms: Sequence[Arm], log: PredictionLog
) -> list[Row]:
    """The scores of all arms, then what each gains over the arm without context."""
    rows = summarize("rag_qa", {questions[0].task: questions}, arms, log, k=k, seed=seed)
    none = next((arm for arm in arms if arm.name == "none"), None)
    rows += [
        paired_difference(questions, arm, none, log, "f1", benchmark="rag_qa", k=k, seed=seed)
        for arm in arms
        if none is not None and arm is not none
    ]
    return rows


if __name__ == "__main__":
    run_script(main)
