"""Time and bytes: throughput, queries, context length and storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plots import draw_bytes, draw_context, draw_queries, draw_serving, draw_throughput
from result_rows import (
    ARMS,
    PHASES,
    Json,
    Results,
    latency_rows,
    pick,
    query_arms,
    query_name,
    stored_name,
    throughput_name,
)
from tables.markdown import Place, bold, mib, number, score, table


def throughput_section(results: Results, place: Place) -> str:
    """A picture and a table of source tokens compressed per second."""
    rows = latency_rows(results, "compress")
    return f"{_throughput(rows, place)}\n\n{results.source(rows)}" if rows else ""


def query_section(results: Results, place: Place) -> str:
    """A picture and a table of time to answer, by phase."""
    rows = latency_rows(results, "query")
    return f"{_queries(rows, place)}\n\n{results.source(rows)}" if rows else ""


def context_section(results: Results, place: Place) -> str:
    """A picture and a table of the first token's time and the KV cache, by context length."""
    rows = latency_rows(results, "context")
    return f"{_contexts(rows, place)}\n\n{results.source(rows)}" if rows else ""


def _throughput(rows: Sequence[Json], place: Place) -> str:
    file = draw_throughput(rows, place.pictures / "throughput.png")
    lines = []
    for row in rows:
        if not row["metric"].endswith("tokens_per_second"):
            continue
        same = {"arm": row["arm"], "rate": row["rate"]}
        share = pick(rows, metric="share_of_prefill", **same)
        cells = [
            throughput_name(row),
            number(row["score"]),
            f"{row['p10']:,.0f} to {row['p90']:,.0f}",
            f"{share['score']:.0f}%" if share else "",
        ]
        lines.append(bold(cells, row["arm"].startswith("ztok")))
    header = ("", "source tokens per second, median", "p10 to p90", "share of the base's prefill")
    return f"{place.image('Compression throughput', file)}\n\n{table(header, lines)}"


def _queries(rows: Sequence[Json], place: Place) -> str:
    file = draw_queries(rows, place.pictures / "query_time.png")
    lines = []
    for k in sorted({row["k"] for row in rows}):
        raw = pick(rows, task="query raw", k=k, metric="answer_ms")
        for task, arm, rate in query_arms(rows):
            same = {"task": task, "arm": arm, "rate": rate, "k": k}
            total = pick(rows, metric="answer_ms", **same)
            if total is None:
                continue
            phases = [pick(rows, metric=f"{phase}_ms", **same) for phase in PHASES]
            cells = [
                str(k),
                query_name(task, arm, rate),
                number(total["context_tokens"]),
                *(number(phase["score"]) if phase else "" for phase in phases),
                f"{total['score']:,.0f} ({total['p10']:,.0f} to {total['p90']:,.0f})",
                f"{raw['score'] / total['score']:.1f} times" if raw and arm == "ztok" else "",
            ]
            lines.append(bold(cells, arm == "ztok" and task == "query warm"))
    header = (
        "chunks", "context", "prompt tokens", *(f"{phase}, ms" for phase in PHASES),
        "time to answer, ms: p50 (p10 to p90)", "faster than raw",
    )  # fmt: skip
    return f"{place.image('Time to answer by phase', file)}\n\n{table(header, lines)}"


def _contexts(rows: Sequence[Json], place: Place) -> str:
    file = draw_context(rows, place.pictures / "context_length.png")
    lines = []
    for length in sorted({row["source_tokens"] for row in rows}):
        here = [row for row in rows if row["source_tokens"] == length]
        raw = pick(here, metric="ttft_ms", rate=1.0)
        for arm, rate in sorted({(r["arm"], r["rate"]) for r in here}, key=lambda arm: arm[1]):
            same = {"arm": arm, "rate": rate}
            row = pick(here, metric="ttft_ms", **same)
            cells = [f"{length:,}", "raw text" if arm != "ztok" else f"rate {rate:g}"]
            if row is None:
                tokens = pick(here, metric="readable", **same)
                cells += [number(tokens["context_tokens"] if tokens else None), *[""] * 5]
                cells[3] = "not readable"
            else:
                faster = arm == "ztok" and raw
                cells += [
                    number(row["context_tokens"]),
                    f"{row['score']:,.0f} ({row['p10']:,.0f} to {row['p90']:,.0f})",
                    f"{raw['score'] / row['score']:.1f} times" if faster and raw else "",
                    mib(row["kv_bytes"]),
                    f"{raw['kv_bytes'] / row['kv_bytes']:.1f} times" if faster and raw else "",
                    _answered(here, same),
                ]
            lines.append(bold(cells, arm == "ztok"))
    header = (
        "source tokens", "context", "prompt tokens", "first token, ms: p50 (p10 to p90)", "faster",
        "KV cache, MiB", "smaller", "questions answered, and token F1",
    )  # fmt: skip
    note = "Not readable: the prompt is longer than the base reads. Compression is not counted."
    return f"{place.image('First token and KV cache', file)}\n\n{table(header, lines)}\n\n{note}"


def _answered(rows: Sequence[Json], same: Mapping[str, Any]) -> str:
    answered, f1 = (pick(rows, metric=metric, **same) for metric in ("answered", "f1"))
    if answered is None:
        return ""
    count = f"{round(answered['score'] * answered['n'] / 100)} of {answered['n']}"
    return count + (f", F1 {f1['score']:.0f}" if f1 else "")


def _answered(rows: Sequence[Json], same: Mapping[str, Any]) -> str:
    answered, f1 = (pick(rows, metric=metric, **same) for metric in ("answered", "f1"))
    if answered is None:
        return ""
    count = f"{round(answered['score'] * answered['n'] / 100)} of {answered['n']}"
    return count + (f", F1 {f1['score']:.0f}" if f1 else "")


def serving_section(results: Results, place: Place) -> str:
    """A picture and a table of answers per second, by how many ask at once."""
    rows = results.where(benchmark="serving")
    if not rows:
        return ""
    file = draw_serving(rows, place.pictures / "serving.png")
    lines = []
    for askers in sorted({row["k"] for row in rows}):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            own = {"k": askers, "arm": arm}
            speed, wait, fill, lag, same = (
                pick(rows, metric=metric, **own)
                for metric in (
                    "answers_per_second", "seconds_per_answer", "answers_per_pass", "loop_lag_ms",
                    "same",
                )
            )  # fmt: skip
            if speed is None or wait is None:
                continue
            cells = [
                str(askers),
                ARMS[arm].label,
                number(speed["context_tokens"]),
                score(speed, 2),
                f"{wait['score']:.2f} ({wait['p10']:.2f} to {wait['p90']:.2f})",
                number((fill or {}).get("score"), 1),
                number((lag or {}).get("score")),
                number((same or {}).get("score")),
            ]
            lines.append(bold(cells, arm == "ztok"))
    header = (
        "askers at once", "context", "prompt tokens", "answers per second (95% interval)",
        "seconds per answer: mean (p10 to p90)", "answers in a pass", "longest loop lag, ms",
        "equal to those asked alone, %",
    )  # fmt: skip
    image = place.image("Answers per second by askers", file)
    note = "One process, `ZTokenLLM.acomplete`. Compression is not counted."
    return f"{image}\n\n{table(header, lines)}\n\n{note}\n\n{results.source(rows)}"


def queries_section(results: Results, place: Place) -> str:
    """A table of many queries at once of one index."""
    rows = results.where(benchmark="queries")
    if not rows:
        return ""
    lines = []
    for askers in sorted({row["k"] for row in rows}):
        by = {row["metric"]: row for row in rows if row["k"] == askers}
        wait = by["seconds_per_answer"]
        lines.append(
            [
                f"{askers:,}",
                score(by["answers_per_second"], 2),
                number(by["cpu_seconds_per_answer"]["score"], 2),
                f"{wait['score']:.1f} ({wait['p10']:.1f} to {wait['p90']:.1f})",
                number(by["answers_per_pass"]["score"], 1),
                number(by["loop_lag_ms"]["score"]),
                mib(by["memory_before_bytes"]["score"]),
                mib(by["peak_memory_bytes"]["score"]),
                number(by["same"]["score"]),
            ]
        )
    header = (
        "queries at once", "answers per second (95% interval)", "processor seconds per answer",
        "seconds waited: mean (p10 to p90)", "answers in a pass", "longest loop lag, ms",
        "memory before, MiB", "peak memory, MiB", "equal to those asked alone, %",
    )  # fmt: skip
    note = results.note("queries")
    return f"{table(header, lines)}\n\n{note} {results.source(rows)}"


def bytes_section(results: Results, place: Place) -> str:
    """A picture and a table of bytes per source token."""
    rows = latency_rows(results, "bytes")
    if not rows:
        return ""
    file = draw_bytes(rows, place.pictures / "bytes.png")
    lines = [
        bold(
            [stored_name(row), score(row, 2), f"{row['p10']:,.2f} to {row['p90']:,.2f}"],
            row["arm"].startswith("ztok"),
        )
        for row in sorted(rows, key=lambda r: r["score"])
    ]
    header = ("of a chunk", "bytes per source token (95% interval)", "p10 to p90 over chunks")
    image = place.image("Bytes per source token", file)
    return f"{image}\n\n{table(header, lines)}\n\n{results.source(rows)}"
