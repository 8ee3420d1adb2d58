"""Time and bytes of Z-tokens and of raw text, on real text.

    python benchmarks/latency.py --data FILE.jsonl --output DIR

`--data` is a JSON Lines file, or a folder of them such as LongBench's. Its records have a
`context`, `text` or `document`; their questions and answers are used where there are any. The
parts are `compress`, throughput against a forward pass of the base LLM; `query`, time to answer
through LlamaIndex, by phase; `context`, time to first token and KV cache against the length of the
context; and `bytes`, stored bytes of single chunks. After a warm-up, what is compared is run in
turns, so that other load on the machine falls on all alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import plots
from common import (
    Parser,
    add_model_options,
    add_skip_option,
    count,
    load_compressor,
    names,
    odd_records,
    positive,
    report_odd,
    run_script,
)
from costs.bench import Bench
from costs.compression import measure_compression
from costs.context import measure_context
from costs.corpus import make_corpus, read_records
from costs.queries import measure_queries
from costs.stored import measure_bytes
from ztok_rag.cli.console import shows_bars
from ztok_rag.codec.base import dtype_name
from ztok_rag.codec.compressor import MAX_RATE
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, format_table, write_results
from ztok_rag.files import show

PARTS = ("compress", "query", "context", "bytes")
CHUNK_TOKENS = 256
LENGTHS = (1000, 2000, 4000, 8000, 16000, 32000)

MEASURE: Mapping[str, Callable[[Bench, tqdm[Any]], list[Row]]] = {
    "compress": measure_compression,
    "query": measure_queries,
    "context": measure_context,
    "bytes": measure_bytes,
}
DRAW: Mapping[str, Callable[[Sequence[dict[str, Any]], Path], Path]] = {
    "compress": plots.draw_throughput,
    "query": plots.draw_queries,
    "context": plots.draw_context,
    "bytes": plots.draw_bytes,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts asked for, and write results and pictures."""
    options = parse(arguments)
    odd = odd_records(options)
    records = read_records(options.data, odd)
    report_odd(odd)
    records = [records[i] for i in np.random.default_rng(options.seed).permutation(len(records))]
    compressor = load_compressor(options)
    needed = max(
        max(options.lengths) if "context" in options.parts else 0,
        CHUNK_TOKENS * (max(options.chunks, options.windows) + 1),
    )
    corpus = make_corpus(records, compressor.tokenizer, needed, CHUNK_TOKENS)
    rates = tuple(dict.fromkeys(options.rates))
    bench = Bench(compressor, corpus, rates, options.repeats, options)
    output = options.output or Path("results") / "latency"
    note = (
        f"{len(corpus.offsets)} tokens of {show(options.data)}, drawn by seed; scores are medians "
        f"of {options.repeats} repeats after a warm-up, intervals those of the median, p10 and p90 "
        "beside them; ms, tokens per second, or bytes, as the metric says."
    )
    rows: list[Row] = []
    with tqdm(total=len(options.parts), unit="part", disable=not shows_bars()) as bar:
        for part in options.parts:
            bar.set_description(part)
            rows += MEASURE[part](bench, bar)
            bar.update()
            results = write_results(
                output,
                rows,
                seed=options.seed,
                checkpoint=show(options.checkpoint or "default"),
                device=str(bench.base.device),
                fingerprint=compressor.fingerprint,
                benchmark="latency",
                note=note,
                dtype=dtype_name(bench.base.dtype),
                threads=torch.get_num_threads(),
            )
            own = [row for row in results["rows"] if row["task"].split()[0] == part]
            DRAW[part](own, output / f"{part}.png")
    print(format_table(rows))
    pictures = ", ".join(f"{part}.png" for part in options.parts)
    print(f"{note}\nWritten: {show(output)}/results.json, {pictures}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = Parser(description="Measure time and bytes of Z-tokens and of raw text.")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help="JSON Lines of records with context, text or document, or a folder of such files",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=names, default=list(PARTS), metavar="A,B",
        help=f"of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--rates", type=rates, default=[4.0, 8.0], metavar="R,S", help="default: 4,8"
    )
    parser.add_argument(
        "--lengths", type=whole_numbers, default=list(LENGTHS), metavar="N,M",
        help="source tokens of context; 8k is 8000 (default: 1k,2k,4k,8k,16k,32k)",
    )  # fmt: skip
    parser.add_argument(
        "--k", type=whole_numbers, default=[1, 5, 10, 20], metavar="N,M",
        help="chunks per query (default: 1,5,10,20)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--windows", type=positive, default=32, metavar="N",
        help="windows of 256 tokens in one pass of compression (default: 32)",
    )  # fmt: skip
    parser.add_argument(
        "--chunks", type=positive, default=64, metavar="N",
        help="chunks that are indexed, and stored (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--answers", type=count, default=3, metavar="N",
        help="questions answered at each context length (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="length of an answer"
    )
    parser.add_argument(
        "--batch-tokens", type=positive, default=None, metavar="N",
        help="padded tokens per pass, of compressor and base alike (default: the compressor's own)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    add_model_options(parser)
    add_skip_option(parser)
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        raise DataError(f"unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}.")
    if "query" in options.parts and max(options.k) > options.chunks:
        raise DataError(f"--k {max(options.k)} needs at least as many --chunks.")
    return options


def whole_numbers(text: str) -> list[int]:
    """Comma-separated whole numbers of at least 1, `8k` for 8000, as an argument type."""
    return [
        positive(part.removesuffix("k")) * (1000 if part.endswith("k") else 1)
        for part in names(text)
    ]


def rates(text: str) -> list[float]:
    """Comma-separated rates, as an argument type."""
    try:
        values = [float(part) for part in names(text)]
    except ValueError:
        values = []
    if not values or not all(1 < value <= MAX_RATE for value in values):
        raise argparse.ArgumentTypeError(f"rates are numbers above 1, to {MAX_RATE:g}")
    return values


if __name__ == "__main__":
    run_script(main)
