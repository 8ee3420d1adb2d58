"""Rows of results as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from ztok_rag.evaluation.arms import Arm
from ztok_rag.evaluation.rows import Row


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a table of aligned text."""
    header = (
        "task", "arm", "metric", "k", "score", "95% interval", "n", "real rate", "context tokens",
        "bytes/source token", "prefill ms", "first token ms", "KV MiB", "shorten ms",
    )  # fmt: skip
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    out.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(out)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    arm = Arm(row.arm, row.rate, None).label
    return (
        row.task,
        arm,
        row.metric,
        str(row.k),
        number(row.score, 1),
        f"{row.ci95[0]:.1f} to {row.ci95[1]:.1f}",
        str(row.n),
        number(row.real_rate, 2),
        number(row.context_tokens, 0),
        number(row.bytes_per_source_token, 2),
        number(row.prefill_ms, 0),
        number(row.ttft_ms, 0),
        number(None if row.kv_bytes is None else row.kv_bytes / 2**20, 2),
        number(row.shorten_ms, 1),
    )
