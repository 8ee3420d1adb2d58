"""LongBench's English tasks (arXiv 2308.14508) over retrieved context.

    python benchmarks/longbench.py --data DIR --output DIR

`DIR` holds TASK.jsonl files in LongBench's format, with LongBench's `dataset2prompt.json` and
`dataset2maxlen.json`. `--data hub` downloads them. Without `--data`, a small set of questions on
Python's own documentation is run instead; that is not LongBench.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import (
    chunk_size,
    load_compressor,
    make_parser,
    names,
    odd_records,
    peer_differences,
    report_odd,
    run,
    run_script,
    split_context,
)
from embed import embed_queries, embed_texts
from tasks.download import download
from tasks.kinds import TASKS, make_question
from tasks.pydoc import PYDOC_NOTE, PYDOC_TASK, pydoc_records
from tasks.records import load_config, load_task, task_file
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Arm, PredictionLog, Question, Row, digest, sample, summarize
from ztok_rag.files import show

_QUERY_CHARACTERS = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.tasks or () if name not in TASKS]
    if unknown and not (options.data is None and unknown == [PYDOC_TASK]):
        raise DataError(f"unknown task {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
    if options.data is None:
        note = PYDOC_NOTE
        print(note)
        if options.tasks and options.tasks != [PYDOC_TASK]:
            raise DataError(f"the tasks {', '.join(options.tasks)} need --data DIR or --data hub.")
        loaded = {PYDOC_TASK: pydoc_records()}
        template = QA_TEMPLATE.replace("{question}", "{input}")
        templates, lengths = {PYDOC_TASK: template}, {PYDOC_TASK: 32}
    else:
        folder = download() if options.data == "hub" else Path(options.data)
        names = options.tasks or [name for name in TASKS if task_file(folder, name).exists()]
        if not names:
            raise DataError(
                f"{show(folder)} holds no TASK.jsonl file of {', '.join(TASKS)}; "
                "give another --data."
            )
        templates, lengths = load_config(folder, options.templates, names)
        odd = odd_records(options)
        loaded = {name: load_task(folder, name, odd) for name in names}
        report_odd(odd)
        note = (
            f"LongBench records of {show(options.data)}, official templates, answer lengths and "
            "metrics, over retrieved chunks."
        )
    chosen = {
        name: sample(records, options.limit, options.seed) for name, records in loaded.items()
    }
    tasks = {
        name: [make_question(name, r, templates[name], lengths[name]) for r in records]
        for name, records in chosen.items()
    }
    compressor = load_compressor(options)
    benchmark = "longbench" if options.data else PYDOC_TASK
    run(
        options,
        benchmark=benchmark,
        note=f"{note} Contexts were split into chunks of {options.chunk_tokens} tokens and "
        + " or ".join(f"the {k} nearest" if k else "all of them" for k in options.k)
        + " read in document order.",
        tasks=tasks,
        settings={
            "chunk_tokens": options.chunk_tokens,
            "data": None if options.data is None else show(options.data),
            "templates": digest([templates, lengths]),
        },
        compressor=compressor,
        retrieve=Retriever(
            {
                (name, record["_id"]): record
                for name, records in chosen.items()
                for record in records
            },
            compressor.tokenizer,
            options.chunk_tokens,
        ),
        best_first=False,
        summarize=partial(_rows, benchmark, tasks, options.seed),
    )


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("Run LongBench's English tasks over retrieved context.", k=4, limit=None)
    parser.add_argument(
        "--data",
        default=None,
        metavar="DIR",
        help="folder of TASK.jsonl files, or `hub` to download them "
        "(default: a small set of questions on Python, which is not LongBench)",
    )
    parser.add_argument(
        "--tasks",
        type=names,
        default=None,
        metavar="A,B",
        help="comma-separated (default: every task in the folder)",
    )
    parser.add_argument(
        "--templates",
        type=Path,
        default=None,
        metavar="FILE",
        help="prompt templates by task (default: dataset2prompt.json of the data folder)",
    )
    parser.add_argument(
        "--chunk-tokens",
        type=chunk_size,
        default=256,
        metavar="N",
        help="tokens of the base LLM per chunk (default: 256)",
    )
    return parser


class Retriever:
    """Retrieves the `k` chunks of each question's own context that are nearest to the question.

    The chunks are returned in document order. A record without a question, as in code completion
    and summaries, uses the end of its context as the query. With `k` of 0, all chunks are returned.
    """

    def __init__(
        self,
        records: Mapping[tuple[str, str], Mapping[str, Any]],
        tokenizer: Any,
        chunk_tokens: int,
    ) -> None:
        self.records = records
        self.tokenizer = tokenizer
        self.chunk_tokens = chunk_tokens

    def __call__(self, questions: Sequence[Question], k: int) -> list[list[str]]:
        records = [self.records[question.task, question.id] for question in questions]
        contexts = list(dict.fromkeys(record["context"] for record in records))
        split = {
            context: split_context(context, self.tokenizer, self.chunk_tokens)
            for context in contexts
        }
        if not k:
            return [split[record["context"]] for record in records]
        chunks = list(dict.fromkeys(chunk for context in contexts for chunk in split[context]))
        places = {chunk: place for place, chunk in enumerate(chunks)}
        vectors = embed_texts(chunks)
        queries = embed_queries(
            [(r["input"].strip() or split[r["context"]][-1])[-_QUERY_CHARACTERS:] for r in records]
        )
        found = []
        for record, query in zip(records, queries, strict=True):
            own = split[record["context"]]
            scores = vectors[[places[chunk] for chunk in own]] @ query
            best = np.argsort(-scores, kind="stable")[:k]
            found.append([own[i] for i in sorted(best)])
        return found


def _rows(
    benchmark: str,
    tasks: Mapping[str, Sequence[Question]],
    seed: int,
    arms: Sequence[Arm],
    log: PredictionLog,
    k: int,
) -> list[Row]:
    """Scores of all arms, then paired differences between Z-tokens and each peer."""
    rows = summarize(benchmark, tasks, arms, log, k=k, seed=seed)
    return rows + peer_differences(tasks, arms, log, benchmark=benchmark, k=k, seed=seed)


if __name__ == "__main__":
    run_script(main)
