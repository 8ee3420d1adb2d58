"""Bytes on disk of single chunks."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from zstandard import ZstdCompressor

from costs.bench import Bench
from ztok_rag.evaluation import Row, bootstrap_ci
from ztok_rag.evaluation.intervals import ratio
from ztok_rag.selection.query_aware import QueryAwareSelector, resolve_in_memory
from ztok_rag.selection.sentences import SentenceScorer


def measure_bytes(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """Bytes per source token of single chunks: as text, vectors, KV cache and Z-tokens."""
    base, chunks = bench.base, bench.corpus.chunks[: bench.options.chunks]
    tokens = [bench.compressor.count_tokens(chunk) for chunk in chunks]
    raw = [chunk.encode("utf-8", "surrogatepass") for chunk in chunks]
    zstd = ZstdCompressor(level=19)
    half = torch.finfo(torch.float16).bits // 8
    kv = base.kv_bytes_per_position // base.dtype.itemsize * half
    sizes: dict[tuple[str, float], list[int]] = {
        ("text", 1.0): [len(data) for data in raw],
        ("gzip", 1.0): [len(gzip.compress(data, 9)) for data in raw],
        ("zstd", 1.0): [len(zstd.compress(data)) for data in raw],
        ("embedding-fp16", 1.0): [n * base.hidden_size * half for n in tokens],
        ("kv-cache-fp16", 1.0): [n * kv for n in tokens],
    }
    scorer = SentenceScorer(bench.compressor.tokenizer)
    focus = QueryAwareSelector(bench.compressor, scorer, resolve_in_memory(bench.compressor))
    focus.prepare(chunks)
    sizes["ztok-store", 1.0] = [focus.stored_bytes([chunk]) for chunk in chunks]
    for rate in bench.rates:
        bar.set_postfix_str(f"rate {rate:g}")
        zs = bench.compressor.compress(chunks, rate, batch_tokens=bench.options.batch_tokens)
        sizes["ztok", rate] = [len(z.to_bytes()) for z in zs]
    rows = []
    for (arm, rate), stored in sizes.items():
        values = [size / n for size, n in zip(stored, tokens, strict=True)]
        row = bench.row("bytes", arm, rate, "bytes_per_source_token", values)
        row.score = row.bytes_per_source_token = sum(stored) / sum(tokens)
        pairs = np.stack([stored, tokens], axis=1)
        row.ci95 = bootstrap_ci(pairs, seed=bench.options.seed, statistic=ratio)
        rows.append(row)
    return rows
