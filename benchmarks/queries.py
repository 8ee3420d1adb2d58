"""A thousand queries at once of one index, and the memory that they take.

    python benchmarks/queries.py --data FILE.jsonl --output DIR

The file is JSON Lines of records with `context` and `question`, or a folder of such files. The
contexts of `--distinct` records are a `ZTokenIndex`. Their questions, repeated, are asked of one
query engine by `--askers` calls of `aquery` at once. In float32 every answer must be the one that
`query` gives to the question alone.

`peak_memory_bytes` is the most that the process held while it answered, `memory_before_bytes` what
it held before, model and index included; `cpu_seconds_per_answer` is processor time of all threads,
which depends less on what else the machine does. The other metrics are those of `serving.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from llama_index.core import Document, PromptTemplate
from tqdm import tqdm

from common import (
    Parser,
    add_model_options,
    add_records_option,
    load_compressor,
    positive,
    run_script,
    write_measured,
)
from costs.corpus import draw_records, read_records
from scale import peak_bytes, reset_peak
from serving import ask, check, make_rows
from ztok_rag.cli.console import shows_bars
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.evaluation import Row
from ztok_rag.index.index import ZTokenIndex


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, and write the results."""
    options = parse(arguments)
    compressor = load_compressor(options)
    records = [r for r in read_records(options.data) if isinstance(r.get("question"), str)]
    chosen = draw_records(
        records, options.data, compressor, limit=options.distinct, seed=options.seed
    )
    questions = [str(record["question"]) for record in chosen]
    documents = [Document(text=str(record["context"])) for record in chosen]
    with (
        tempfile.TemporaryDirectory() as folder,
        ZTokenIndex.build(
            documents, Path(folder) / "index", compressor=compressor, rate=options.rate
        ) as index,
    ):
        compressor.reader.batcher.max_rows = options.max_batch
        engine = index.as_query_engine(
            index.llm(max_new_tokens=options.max_new_tokens),
            similarity_top_k=options.top_k,
            text_qa_template=PromptTemplate(
                QA_TEMPLATE.format(context="{context_str}", question="{query_str}")
            ),
        )
        bar = tqdm(questions, "alone", disable=not shows_bars())
        alone = {question: str(engine.query(question)) for question in bar}

        async def answer(question: str) -> str:
            return str(await engine.aquery(question))

        asked = list(islice(cycle(questions), options.askers))
        reset_peak()
        before, started = peak_bytes(), time.process_time()
        turn = asyncio.run(ask(answer, asked, len(asked), compressor.reader.batcher))
        further = {
            "cpu_seconds_per_answer": (time.process_time() - started) / len(asked),
            "memory_before_bytes": float(before),
            # Linux counts pages roughly, so that a peak may read as less than what was held.
            "peak_memory_bytes": float(max(before, peak_bytes())),
        }
    wanted = [alone[question] for question in asked]
    check(turn.answers, wanted, compressor)
    arm, rate, askers = "ztok-focus", options.rate, len(asked)
    rows = make_rows(turn, arm, rate, askers, wanted, None, options, benchmark="queries")
    rows += [
        Row("queries", "askers", arm, rate, askers, metric, value, (value, value), 1)
        for metric, value in further.items()
    ]
    note = (
        f"An index of the contexts of {options.distinct} records of {options.data}, drawn by seed, "
        f"asked their questions at rate {options.rate:g} over {options.top_k} "
        f"chunk{'s' if options.top_k > 1 else ''}; answers of at most {options.max_new_tokens} "
        f"tokens, at most {options.max_batch} in a pass. Retrieval and selection are counted."
    )
    write_measured(options, rows, compressor, benchmark="queries", note=note)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description="Measure many queries of one index at once.")
    add_records_option(parser)
    parser.add_argument(
        "--askers", type=positive, default=1_000, metavar="N", help="queries (default: 1000)"
    )
    parser.add_argument(
        "--distinct", type=positive, default=32, metavar="N",
        help="records; their questions are repeated (default: 32)",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, default=8.0, metavar="R", help="default: 8")
    parser.add_argument(
        "--top-k", type=positive, default=1, metavar="N", help="chunks of a query (default: 1)"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=4, metavar="N", help="default: 4"
    )
    parser.add_argument("--max-batch", type=positive, default=16, metavar="N", help="default: 16")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    add_model_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
