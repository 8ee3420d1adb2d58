"""The tasks of the paper (arXiv 2603.25340): its figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from result_rows import Json, Results, chunks, latency_rows
from tables.markdown import Place, mib, number, score, table


@dataclass(frozen=True)
class PaperTask:
    """A figure of the paper, and the rows of ours to compare with it.

    Attributes:
        task: name in the paper.
        metric: name in the paper.
        figure: the paper's score.
        ours: whether a row of ours is to be compared.
        differs: how our measurement differs.
    """

    task: str
    metric: str
    figure: float
    ours: Callable[[Json], bool]
    differs: str = ""


def _in_longbench(task: str, *metrics: str) -> Callable[[Json], bool]:
    return lambda r: r["benchmark"] == "longbench" and r["task"] == task and r["metric"] in metrics


PAPER = (
    PaperTask(
        "reconstruction, Wikipedia",
        "BLEU-4",
        99.31,
        lambda r: r["benchmark"] == "reconstruction" and "squad" in r["task"]
        and r["metric"] == "bleu4" and r["arm"] == "repeat",
        "paragraphs of SQuAD dev, which are from Wikipedia, repeated by the reader",
    ),
    PaperTask(
        "HotpotQA", "F1", 33.35, _in_longbench("hotpotqa", "f1"),
        "LongBench's sample, over retrieved chunks",
    ),
    PaperTask(
        "QASPER", "F1", 18.31, _in_longbench("qasper", "f1"),
        "LongBench's sample, over retrieved chunks",
    ),
    PaperTask(
        "QuALITY",
        "accuracy",
        39.25,
        lambda r: "quality" in r["task"].lower()
        and r["metric"] in ("accuracy", "classification", "choice"),
        "L-Eval's sample",
    ),
    PaperTask(
        "news summarization", "ROUGE-1", 32.58, _in_longbench("multi_news", "rouge_1", "rouge_l"),
        "Multi-News in place of CNN/DailyMail; LongBench's metric is ROUGE-L",
    ),
)  # fmt: skip

_PAPER_NOTE = (
    "The rows are not like for like. Ours is a base LLM of 135 million parameters; the paper "
    "fine-tunes a far larger one. Its data sets stand under their own names above, ours in the "
    "last column. Where there is a question, our Z-tokens are spent by it."
)


def paper_section(results: Results, place: Place) -> str:
    """A table of the paper's figures beside ours."""
    lines: list[list[str]] = []
    used: list[Json] = []
    for task in PAPER:
        rows = [row for row in results.rows if task.ours(row)]
        by_question = [row for row in rows if row["arm"] == "ztok-focus"]
        ours = by_question or [row for row in rows if row["arm"] in ("ztok", "repeat")]
        text = [row for row in rows if row["arm"] == "text-reader"]
        if ours:
            used += ours + text
            lines.append(
                [task.task, task.metric, f"{task.figure:.2f}", _by_rate(ours), _by_rate(text),
                 task.differs]
            )  # fmt: skip
    reductions = [
        row
        for row in results.rows
        if row["arm"] in ("ztok", "ztok-focus", "ztok-twice")
        and row["metric"] == "f1"
        and row.get("source_tokens_per_position")
    ]
    best = max(reductions, key=lambda row: (row["rate"], row["score"]), default=None)
    if best:
        used.append(best)
        times = best["source_tokens_per_position"]
        lines.append(
            ["token reduction", "source tokens per token read", "up to 18 times",
             f"{times:.1f} times, where F1 on {best['task']} is {score(best)}", "",
             "any rate from 1 to 64 can be asked for"]
        )  # fmt: skip
    costs = _cost_lines(results)
    for line, rows in costs:
        lines.append(line)
        used += rows
    if not lines:
        return ""
    header = ("task", "score", "paper", "ours, Z-tokens", "ours, raw text", "what differs")
    return f"{table(header, lines)}\n\n{_PAPER_NOTE}\n\n{results.source(used)}"


def _cost_lines(results: Results) -> list[tuple[list[str], list[Json]]]:
    """Memory and time against the longest raw text: the lines, each with the rows it is from."""
    found = []
    context = [r for r in latency_rows(results, "context") if r["metric"] == "ttft_ms"]
    query = [r for r in latency_rows(results, "query") if r["metric"] == "answer_ms"]
    for title, unit, rows, size, value, shown in (
        ("generation-stage memory", "KV cache, MiB", context, "source_tokens", "kv_bytes", mib),
        ("end-to-end latency", "time to answer, ms", query, "k", "score", number),
    ):
        raw = max((r for r in rows if r["arm"] != "ztok"), key=lambda r: r[size], default=None)
        if raw is None:
            continue
        ours = sorted(
            (r for r in rows if r["arm"] == "ztok" and r[size] == raw[size]
             and r["task"] != "query cold"),
            key=lambda r: r["rate"],
        )  # fmt: skip
        cells = [
            f"{shown(r[value])} at rate {r['rate']:g}, {raw[value] / r[value]:.1f} times less"
            for r in ours
        ]
        what = f"{raw[size]:,} source tokens" if size == "source_tokens" else chunks(raw[size])
        line = [title, unit, "no figure", "; ".join(cells), shown(raw[value]), f"{what}, on a CPU"]
        found.append((line, [raw, *ours]))
    return found


_AT_A_RATE = ("ztok", "ztok-focus", "repeat")


def _by_rate(rows: Sequence[Json]) -> str:
    """The scores in one cell, by rising rate."""
    cells = []
    for row in sorted(rows, key=lambda r: r["rate"] or 0):
        cell = score(row) + (f" at rate {row['rate']:g}" if row["arm"] in _AT_A_RATE else "")
        cells.append(cell + (" (ROUGE-L)" if row["metric"] == "rouge_l" else ""))
    return "; ".join(cells)
