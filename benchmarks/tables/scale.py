"""An index and a store as they grow: time, memory and bytes against their size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from plots import plain, plt, save
from result_rows import Json, Results, pick
from tables.markdown import Place, bold, mib, number, table

# Of each panel: its title, the factor of its numbers, and its lines: metric, arm, name, colour.
_PANELS = (
    (
        "milliseconds to add 1,000 chunks",
        1.0,
        (
            ("insert_ms", "memory", "held in memory", "0.45"),
            ("insert_ms", "disk", "on disk: text and vectors", "#D55E00"),
            ("insert_z_tokens_ms", "disk", "Z-tokens", "#0072B2"),
        ),
    ),
    (
        "milliseconds per search",
        1.0,
        (
            ("query_exact_ms", "disk", "on disk, exact", "#009E73"),
            ("query_ms", "disk", "on disk, before optimize()", "#E69F00"),
            ("query_optimized_ms", "disk", "on disk, after optimize()", "#D55E00"),
            ("query_ms", "memory", "held in memory", "0.45"),
        ),
    ),
    (
        "peak memory of the process, MiB",
        2.0**-20,
        (
            ("peak_rss_bytes", "disk", "on disk", "#D55E00"),
            ("peak_rss_bytes", "memory", "held in memory", "0.45"),
        ),
    ),
    (
        "MiB on disk",
        2.0**-20,
        (
            ("catalog_bytes", "disk", "text and catalog", "#0072B2"),
            ("vector_bytes", "disk", "vectors and their index", "#D55E00"),
            ("z_token_bytes", "disk", "Z-tokens", "#009E73"),
        ),
    ),
)


def scale_section(results: Results, place: Place) -> str:
    """A picture and a table of an index of up to a million chunks."""
    rows = results.where(benchmark="scale")
    if not rows:
        return ""
    file = draw_scale(rows, place.pictures / "scale.png")
    lines = []
    for size in sorted({row["chunks"] for row in rows}):
        for arm in ("memory", "disk"):
            here = [row for row in rows if (row["chunks"], row["arm"]) == (size, arm)]
            if here:
                is_last = arm == "disk" and size == max(row["chunks"] for row in rows)
                lines.append(bold(_cells(size, arm, here), is_last))
    header = (
        "chunks", "kept", "add 1,000, ms: p50 (p10 to p90)", "and their Z-tokens, ms",
        "search, ms", "after optimize(), ms: p50 (p90)", "recall at 10", "exact search, ms",
        "optimize(), s", "peak memory, MiB", "bytes per chunk: text, vectors, Z-tokens",
    )  # fmt: skip
    note = results.note("scale")
    image = place.image("An index as it grows", file)
    return f"{image}\n\n{table(header, lines)}\n\n{note} {results.source(rows)}"


def largest_on_disk(results: Results) -> list[Json]:
    """The rows of the index on disk at its largest size."""
    rows = results.where(benchmark="scale", arm="disk")
    most = max((row["chunks"] for row in rows), default=0)
    return [row for row in rows if row["chunks"] == most]


def probe_section(results: Results, place: Place) -> str:
    """A table of processor time and peak memory of fresh processes."""
    rows = results.where(benchmark="scale_probe")
    if not rows:
        return ""
    sizes = sorted({row["chunks"] for row in rows})

    def cell(metric: str, size: int) -> str:
        row = pick(rows, metric=metric, chunks=size)
        if row is None:
            return ""
        return mib(row["score"]) if metric.endswith("bytes") else number(row["score"], 1)

    names = {
        "add_cpu_ms": "add 1,000 chunks, ms of processor time",
        "search_cpu_ms": "search, ms of processor time",
        "exact_cpu_ms": "exact search, ms of processor time",
        "exact_recall_at_10": "recall at 10 of the search, %",
        "optimize_cpu_ms": "optimize() after 10,000 chunks, ms of processor time",
        "open_peak_bytes": "open it, peak MiB",
        "search_peak_bytes": "search, peak MiB",
        "add_peak_bytes": "add 10,000 chunks, peak MiB",
        "optimize_peak_bytes": "optimize(), peak MiB",
        "exact_peak_bytes": "exact search, peak MiB",
    }
    lines = [[name, *(cell(metric, size) for size in sizes)] for metric, name in names.items()]
    header = ("", *(f"{size:,} chunks" for size in sizes))
    note = results.note("scale_probe")
    return f"{table(header, lines)}\n\n{note} {results.source(rows)}"


def store_section(results: Results, place: Place) -> str:
    """A table of a store in a folder and in Redis, by the number of texts."""
    rows = results.where(benchmark="store_size")
    if not rows:
        return ""
    lines = []
    for size in sorted({row["chunks"] for row in rows}):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            own = [row for row in rows if (row["chunks"], row["arm"]) == (size, arm)]
            if own:
                is_last = size == max(row["chunks"] for row in rows)
                lines.append(bold(_store_cells(size, arm, own), is_last))
    header = (
        "texts", "kept in", "look up 64, ms: p50 (p10 to p90)", "put 64, ms",
        "delete a text, ms", "count entries, ms", "count bytes, ms", "entries filled per second",
        "values, MiB", "server's memory, MiB", "on disk, MiB",
    )  # fmt: skip
    note = results.note("store_size")
    return f"{table(header, lines)}\n\n{note} {results.source(rows)}"


def _store_cells(size: int, arm: str, rows: Sequence[Json]) -> list[str]:
    def of(metric: str, digits: int = 2) -> str:
        row = pick(rows, metric=metric)
        if row is None:
            return ""
        middle, low, high = (f"{row[part]:,.{digits}f}" for part in ("score", "p10", "p90"))
        return f"{middle} ({low} to {high})" if row["n"] > 1 else middle

    names = ("get_64_ms", "put_64_ms", "delete_text_ms", "count_ms", "size_ms")
    sizes = [pick(rows, metric=f"{part}_bytes") for part in ("value", "memory", "disk")]
    return [
        f"{size:,}",
        "a folder" if arm == "folder" else "Redis",
        *map(of, names),
        of("filled_per_second", 0),
        *(mib(row["score"]) if row else "" for row in sizes),
    ]


def _cells(size: int, arm: str, rows: Sequence[Json]) -> list[str]:
    def of(metric: str, digits: int = 0) -> str:
        row = pick(rows, metric=metric)
        return number(row["score"], digits) if row else ""

    added, best = pick(rows, metric="insert_ms"), pick(rows, metric="query_optimized_ms")
    parts = [pick(rows, metric=f"{part}_bytes") for part in ("catalog", "vector", "z_token")]
    peak = pick(rows, metric="peak_rss_bytes")
    recall = of("recall_at_10", 1)
    return [
        f"{size:,}",
        "on disk" if arm == "disk" else "in memory",
        f"{added['score']:,.0f} ({added['p10']:,.0f} to {added['p90']:,.0f})" if added else "",
        of("insert_z_tokens_ms"),
        of("query_ms", 1),
        f"{best['score']:,.1f} ({best['p90']:,.1f})" if best else "",
        f"{recall}%" if recall else "",
        of("query_exact_ms", 1),
        of("optimize_s", 1),
        mib(peak["score"]) if peak else "",
        ", ".join(number(part["score"] / size) for part in parts if part),
    ]


def draw_scale(rows: Sequence[Json], file: Path) -> Path:
    """Four panels against the number of chunks, on log scales."""
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 7.6))
    for axis, (title, factor, lines) in zip(axes.flat, _PANELS, strict=True):
        for metric, arm, name, colour in lines:
            mine = [row for row in rows if (row["metric"], row["arm"]) == (metric, arm)]
            _line(axis, mine, factor, name, colour)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set(xlabel="chunks (log scale)", ylabel=f"{title} (log scale)")
        axis.legend(fontsize=8, frameon=False)
        plain(axis)
    return save(figure, file)


def _line(axis: Axes, rows: Sequence[Json], factor: float, name: str, colour: str) -> None:
    line = sorted(rows, key=lambda row: row["chunks"])
    if not line:
        return
    x = [row["chunks"] for row in line]
    axis.plot(
        x,
        [factor * row["score"] for row in line],
        marker="o",
        markersize=4,
        color=colour,
        label=name,
    )
    low, high = ([factor * row[part] for row in line] for part in ("p10", "p90"))
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
