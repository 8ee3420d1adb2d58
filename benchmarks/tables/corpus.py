"""Questions over a corpus: scores and costs of every arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from plots import draw_accuracies
from result_rows import (
    COVID,
    SQUAD,
    Json,
    Results,
    arm_order,
    at_k,
    chunks,
    corpus_rows,
    ks_of,
    name_of,
    pick,
)
from tables.markdown import Place, bold, mib, number, score, signed, table


def accuracy_section(results: Results, place: Place) -> str:
    """A picture of F1 against context tokens, with a panel per number of chunks."""
    rows = corpus_rows(results)
    if not ks_of(rows):
        return ""
    file = draw_accuracies(rows, ks_of(rows), place.pictures / "accuracy.png")
    return place.image("Token F1 against context tokens read, by chunks retrieved", file)


def corpus_section(results: Results, place: Place, *, task: str) -> str:
    """A table of all arms per number of chunks."""
    rows = corpus_rows(results, task)
    parts = []
    for k in ks_of(rows):
        chosen = at_k(rows, k)
        parts.append(f"### {chunks(k)} retrieved ({questions(chosen)})")
        parts.append(arms_table(chosen, corpus_rows(results, task, "exact_match")))
    return "\n\n".join([*parts, results.source(rows)]) if parts else ""


def questions(rows: Iterable[Json]) -> str:
    """The number of questions, in words."""
    return f"{' or '.join(str(n) for n in sorted({row['n'] for row in rows}))} questions"


def arms_table(rows: Sequence[Json], exact: Sequence[Json]) -> str:
    """A table of scores and costs, with a line per arm."""
    lines = []
    for row in rows:
        same = {part: row[part] for part in ("arm", "rate", "k")}
        cells = [
            name_of(row["arm"], row["rate"]),
            score(row),
            score(pick(exact, **same)),
            number(row.get("real_rate"), 2),
            number(row["context_tokens"]),
            number(row["ttft_ms"]),
            mib(row["kv_bytes"]),
            number(row["bytes_per_source_token"], 2),
            number(row.get("shorten_ms", row.get("postprocess_ms"))),
        ]
        lines.append(bold(cells, row["arm"].startswith("ztok")))
    header = (
        "arm", "token F1", "exact match", "real rate", "context tokens", "first token, ms",
        "KV cache, MiB", "bytes stored per source token", "choosing what is read, ms per question",
    )  # fmt: skip
    return table(header, lines)


def paired_section(results: Results, place: Place) -> str:
    """A table of paired differences between arms on the same questions."""
    tasks = (SQUAD, COVID)
    rows = [
        row
        for row in results.where(benchmark="rag_qa")
        if row["task"] in tasks and row["metric"].startswith("f1_minus_")
    ]
    if not rows:
        return ""
    lines = []

    def order(row: Json) -> tuple[Any, ...]:
        return tasks.index(row["task"]), row["k"], *arm_order(row), row["metric"]

    for row in sorted(rows, key=order):
        other = row["metric"].removeprefix("f1_minus_").replace("_", "-")
        low, high = row["ci95"]
        cells = [
            name_of(row["arm"], row["rate"]),
            name_of(other, None),
            row["task"],
            str(row["k"]),
            signed(row),
            "higher" if low > 0 else "lower" if high < 0 else "not told apart",
        ]
        lines.append(cells)
    header = ("arm", "against", "questions", "chunks", "difference in token F1", "")
    return f"{table(header, lines)}\n\n{results.source(rows)}"
