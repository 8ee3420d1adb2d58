"""One billion chunks on paper, from what was measured at fewer."""

from __future__ import annotations

from collections.abc import Sequence

from result_rows import Json, Results, latency_rows, pick
from tables.markdown import Place, number, table
from tables.scale import largest_on_disk

CHUNKS = 10**9
CHUNK_TOKENS = 220
"""Source tokens of a chunk, as `benchmarks/scale.py` makes their Z-tokens."""
SHARD = 50 * 10**6
"""Chunks of a shard."""


def billion_section(results: Results, place: Place) -> str:
    """A table of bytes, hours and shards, each with the file that it comes from."""
    scale, compress = largest_on_disk(results), latency_rows(results, "compress")
    if not scale or not compress:
        return ""
    size = scale[0]["chunks"]
    lines = [*_bytes(scale, size), *_hours(scale, compress, size), *_shards(scale, size)]
    header = ("", "measured", "for 1,000,000,000 chunks", "from")
    return table(header, lines)


def _bytes(rows: Sequence[Json], size: int) -> list[list[str]]:
    lines, total = [], 0.0
    for metric, name in (
        ("catalog_bytes", "text, metadata and catalog"),
        ("vector_bytes", "vectors and their index"),
        ("z_token_bytes", "Z-tokens"),
    ):
        row = pick(rows, metric=metric)
        if row:
            each = row["score"] / size
            total += each
            lines.append([name, f"{number(each)} bytes a chunk", _terabytes(each), _file(row)])
    lines.append(["**all**", f"{number(total)} bytes a chunk", _terabytes(total), _file(rows[0])])
    return lines


def _hours(rows: Sequence[Json], compress: Sequence[Json], size: int) -> list[list[str]]:
    lines = []
    speed = pick(compress, arm="ztok-store", metric="compress_tokens_per_second")
    if speed:
        hours = CHUNKS * CHUNK_TOKENS / speed["score"] / 3600
        lines.append(
            [
                f"compressing, {CHUNK_TOKENS} tokens a chunk",
                f"{number(speed['score'])} tokens a second on this machine",
                f"{number(hours)} hours of such machines",
                _file(speed),
            ]
        )
    for metric, name in (
        ("insert_ms", "adding text and vectors"),
        ("insert_z_tokens_ms", "adding Z-tokens"),
    ):
        row = pick(rows, metric=metric)
        if row:
            hours = CHUNKS / 1000 * row["score"] / 3.6e6
            measured = f"{number(row['score'])} ms for 1,000, at {size:,} chunks"
            lines.append(
                [name, measured, f"{number(hours)} hours, one after the other", _file(row)]
            )
    return lines


def _shards(rows: Sequence[Json], size: int) -> list[list[str]]:
    parts = [pick(rows, metric=f"{part}_bytes") for part in ("catalog", "vector", "z_token")]
    each = sum(row["score"] for row in parts if row) / size
    shard = f"{number(each * SHARD / 1e9)} GB each"
    lines = [[f"shards of {SHARD:,} chunks", shard, f"{CHUNKS // SHARD} shards", _file(rows[0])]]
    query = pick(rows, metric="query_optimized_ms")
    if query:
        recall = pick(rows, metric="recall_at_10")
        found = f", which found {number(recall['score'])}% of the best ten" if recall else ""
        measured = f"{number(query['score'], 1)} ms at {size:,} chunks{found}"
        lines.append(
            ["a search", measured, "all shards at once, and the best of theirs", _file(query)]
        )
    return lines


def _terabytes(each: float) -> str:
    return f"{each * CHUNKS / 1e12:.2f} TB"


def _file(row: Json) -> str:
    return f"`benchmarks/results/{row['file']}/results.json`"
