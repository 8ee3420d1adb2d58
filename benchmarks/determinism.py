"""How much of what a text is compressed to depends on what is beside it in a batch.

    python benchmarks/determinism.py --data FILE.jsonl --output DIR

Contexts are compressed alone, in batches, and in batches by two threads, in float32 and in bf16.
`unguarded` leaves out that float32 weighs a window alone that is near the edge of a level, and that
bf16 on a CPU weighs every window alone. Scores are the percentage of tokens in another level than
alone, of texts whose stored bytes differ, and of texts whose Z-tokens at rate 8 differ.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

from common import Parser, names, positive, run_script
from costs.corpus import TEXT_FIELDS, read_records
from ztok_rag.codec import compressor as module
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.evaluation import Row, bootstrap_ci, write_results

RATE = 8.0
ALONE, TOGETHER = 1, 4096
"""Padded tokens of a batch."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compress all contexts in each way, and write the results."""
    options = parse(arguments)
    texts = choose(options)
    rows: list[Row] = []
    fingerprint = ""
    for dtype in options.dtypes:
        os.environ["ZTOK_DTYPE"] = dtype
        compressor = ZCompressor.from_pretrained(device="cpu")
        fingerprint = compressor.fingerprint
        rows += measure(compressor, dtype, texts, options.seed)
    del os.environ["ZTOK_DTYPE"]
    note = (
        f"{len(texts)} contexts of {options.data}, drawn by seed; compared with each compressed "
        f"alone. Batches of {TOGETHER} padded tokens. Percentages; seconds are processor time "
        "of all threads, of one run."
    )
    write_results(
        options.output,
        rows,
        seed=options.seed,
        checkpoint="default",
        device="cpu",
        fingerprint=fingerprint,
        benchmark="determinism",
        note=note,
    )
    for each in rows:
        print(f"{each.task:9} {each.arm:20} {each.metric:18} {each.score:9.4f}  n={each.n}")
    print(f"{note}\nWritten: {options.output}/results.json")


def measure(compressor: ZCompressor, dtype: str, texts: Sequence[str], seed: int) -> list[Row]:
    """Compare ways of compressing with compressing alone."""
    ways = {
        "batches": (TOGETHER, 1, True),
        "batches, 2 threads": (TOGETHER, 2, True),
        "unguarded": (TOGETHER, 1, False),
    }
    rows = []
    with tqdm(total=1 + len(ways), desc=dtype) as bar:
        alone, seconds = compress(compressor, texts, ALONE, 1, guarded=True)
        rows.append(_row(dtype, "alone", "cpu_seconds", [seconds], seed))
        bar.update()
        for arm, (batch, threads, guarded) in ways.items():
            found, seconds = compress(compressor, texts, batch, threads, guarded=guarded)
            pairs = list(zip(alone, found, strict=True))
            tokens = np.concatenate([a.levels != b.levels for a, b in pairs])
            at_rate = [
                a.at(RATE, compressor.slots).to_bytes() != b.at(RATE, compressor.slots).to_bytes()
                for a, b in pairs
            ]
            rows += [
                _row(dtype, arm, "tokens_differ", 100.0 * tokens, seed),
                _row(dtype, arm, "texts_differ", [100.0 * (a != b) for a, b in pairs], seed),
                _row(dtype, arm, "z_tokens_differ", [100.0 * differ for differ in at_rate], seed),
                _row(dtype, arm, "cpu_seconds", [seconds], seed),
            ]
            bar.update()
    return rows


def compress(
    compressor: ZCompressor, texts: Sequence[str], batch: int, threads: int, *, guarded: bool
) -> tuple[list[CompressedText], float]:
    """The texts compressed, and the processor time of all threads that it took, in seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    started = time.process_time()
    try:
        with ExitStack() as stack:
            if not guarded:
                stack.enter_context(patch.object(module, "_NOISE", 0.0))
                stack.enter_context(patch.object(module, "reads_alone", lambda base: False))
            found = compressor.compress_all_rates(texts, batch_tokens=batch)
    finally:
        torch.set_num_threads(before)
    return found, time.process_time() - started


def choose(options: argparse.Namespace) -> list[str]:
    """Different contexts, drawn by seed."""
    records = read_records(options.data)
    texts = [str(next(r[field] for field in TEXT_FIELDS if r.get(field))) for r in records]
    different = list(dict.fromkeys(texts))
    order = np.random.default_rng(options.seed).permutation(len(different))
    return [different[i] for i in order[: options.limit]]


def _row(task: str, arm: str, metric: str, values: Sequence[float], seed: int) -> Row:
    interval = bootstrap_ci(values, seed=seed)
    rate = RATE if metric == "z_tokens_differ" else None
    score = float(np.mean(values))
    return Row("determinism", task, arm, rate, 0, metric, score, interval, len(values))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="How much codes depend on the batch.")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE")
    parser.add_argument("--limit", type=positive, default=24, help="contexts; default: 24")
    parser.add_argument("--dtypes", type=names, default=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
