"""Every figure and table of the documents in `docs/` and the README, from the results at hand.

    python benchmarks/figures.py

It reads all `results.json` below `benchmarks/results/`, draws the pictures into `docs/`, and puts
each section between its markers `<!-- begin: NAME -->` and `<!-- end: NAME -->` in the documents;
all else in them stays as it is. A document that is not there yet is begun with all sections.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import Parser, run_script
from plots import (
    ABLATION_METRICS,
    MEMORY_ARMS,
    MEMORY_METRICS,
    draw_ablations,
    draw_accuracies,
    draw_bytes,
    draw_context,
    draw_memory,
    draw_queries,
    draw_throughput,
)
from result_rows import (
    COVID,
    PHASES,
    SQUAD,
    Json,
    Results,
    arm_order,
    at_k,
    by_group,
    chunks,
    corpus_rows,
    ks_of,
    latency_rows,
    name_of,
    pick,
    query_arms,
    query_name,
    stored_name,
    throughput_name,
)
from ztok_rag.codec.sequence import write_atomic
from ztok_rag.errors import DataError

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DOCUMENTS = (
    *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "ablations", "model_card")),
    ROOT / "README.md",
)
NOT_RUN = "not run"
HEADLINE_CHUNKS = (1, 5)
"""Numbers of chunks that the README's table shows; `docs/benchmarks.md` has all."""


# ----------------------------------------------------------------------------------------------
# Tables


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned."""
    marks = ["---", *("---:" for _ in header[1:])]
    rows = [list(header), marks, *(list(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def score(row: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A score with its interval."""
    if row is None:
        return ""
    low, high = row["ci95"]
    return f"{row['score']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def signed(row: Json, digits: int = 1) -> str:
    """A difference with its sign, and its interval."""
    low, high = row["ci95"]
    return f"{row['score']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def mib(value: float | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f}"


def picture(text: str, file: Path, document: Path) -> str:
    """A Markdown image, by its path from the document."""
    return f"![{text}]({Path(os.path.relpath(file, document.parent)).as_posix()})"


def bold(cells: Sequence[str], when: bool) -> list[str]:
    return [f"**{cell}**" if when and cell else cell for cell in cells]


# ----------------------------------------------------------------------------------------------
# Sections


@dataclass(frozen=True)
class Place:
    """Where a section goes: its document, and the folder of pictures."""

    document: Path
    pictures: Path

    def image(self, text: str, file: Path) -> str:
        return picture(text, file, self.document)


def accuracy_section(results: Results, place: Place) -> str:
    """The picture of F1 against context tokens, a panel per number of chunks."""
    rows = corpus_rows(results)
    if not ks_of(rows):
        return NOT_RUN
    file = draw_accuracies(rows, ks_of(rows), place.pictures / "accuracy.png")
    return place.image("Token F1 against context tokens read, by chunks retrieved", file)


def corpus_section(results: Results, place: Place, *, task: str) -> str:
    """A table per number of chunks."""
    rows = corpus_rows(results, task)
    parts = []
    for k in ks_of(rows):
        chosen = at_k(rows, k)
        parts.append(f"### {chunks(k)} retrieved ({questions(chosen)})")
        parts.append(arms_table(chosen, corpus_rows(results, task, "exact_match")))
    return "\n\n".join([*parts, results.source(rows)]) if parts else NOT_RUN


def questions(rows: Iterable[Json]) -> str:
    """How many questions rows are of."""
    return f"{' or '.join(str(n) for n in sorted({row['n'] for row in rows}))} questions"


def arms_table(rows: Sequence[Json], exact: Sequence[Json]) -> str:
    """A line per arm: scores and costs."""
    lines = []
    for row in rows:
        same = {part: row[part] for part in ("arm", "rate", "k")}
        cells = [
            name_of(row["arm"], row["rate"]),
            score(row),
            score(pick(exact, **same)),
            number(row["context_tokens"]),
            number(row["ttft_ms"]),
            mib(row["kv_bytes"]),
            number(row["bytes_per_source_token"], 2),
            number(row.get("shorten_ms", row.get("postprocess_ms"))),
        ]
        lines.append(bold(cells, row["arm"].startswith("ztok")))
    header = (
        "arm", "token F1", "exact match", "context tokens", "first token, ms", "KV cache, MiB",
        "bytes stored per source token", "choosing what is read, ms per question",
    )  # fmt: skip
    return table(header, lines)


def headline_section(results: Results, place: Place) -> str:
    """A line per arm for the README: scores by number of chunks, and costs of the most it read."""
    rows = corpus_rows(results)
    if not (ks := [k for k in ks_of(rows) if k in HEADLINE_CHUNKS]):
        return NOT_RUN
    rows = [row for row in rows if row["k"] in ks or row["arm"] == "none"]
    lines = []
    ways = dict.fromkeys((row["arm"], row["rate"]) for row in sorted(rows, key=arm_order))
    for arm, rate in ways:
        cells = [name_of(arm, rate)]
        most: Json = {}
        for k in ks:
            row = pick(at_k(rows, k), arm=arm, rate=rate)
            cells += [score(row), number(row["context_tokens"]) if row else ""]
            most = row or most
        cells.append(number(most.get("bytes_per_source_token"), 2))
        cells.append(number(most.get("shorten_ms", most.get("postprocess_ms"))))
        lines.append(bold(cells, arm.startswith("ztok")))
    header = ["arm"]
    for k in ks:
        header += [f"token F1, {chunks(k)}", "context tokens"]
    header += ["bytes stored per source token", "choosing what is read, ms per question"]
    return table(header, lines)


def paired_section(results: Results, place: Place) -> str:
    """What one arm scores more than another on the same questions."""
    tasks = (SQUAD, COVID)
    rows = [
        row
        for row in results.where(benchmark="rag_qa")
        if row["task"] in tasks and row["metric"].startswith("f1_minus_")
    ]
    if not rows:
        return NOT_RUN
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


def longbench_section(results: Results, place: Place) -> str:
    """A table per number of chunks: a line per arm, a column per task."""
    rows = [row for row in results.where(benchmark="longbench") if "_minus_" not in row["metric"]]
    if not rows:
        return NOT_RUN
    parts = []
    for k in ks_of(rows):
        here = at_k(rows, k)
        tasks = {(row["task"], row["metric"]) for row in here}
        tasks = sorted(tasks, key=lambda pair: (pair[0] != "average", pair[0]))
        header = ["arm"]
        for task, metric in tasks:
            n = max(row["n"] for row in here if (row["task"], row["metric"]) == (task, metric))
            header.append(f"{task}, {metric.replace('_', ' ')} of {n}")
        lines = []
        for arm, rate in dict.fromkeys((row["arm"], row["rate"]) for row in here):
            own = [row for row in here if (row["arm"], row["rate"]) == (arm, rate)]
            cells = [score(pick(own, task=task, metric=metric)) for task, metric in tasks]
            lines.append(bold([name_of(arm, rate), *cells], arm.startswith("ztok")))
        parts += [f"### {chunks(k) if k else 'the whole context'}", table(header, lines)]
    return "\n\n".join([*parts, results.source(rows)])


def latency_section(results: Results, place: Place) -> str:
    """Compression throughput, query times and context lengths, each as picture and table."""
    parts = []
    for title, part, function in (
        ("Compression throughput", "compress", _throughput_part),
        ("Time to answer", "query", _query_part),
        ("First token and KV cache against context length", "context", _context_part),
    ):
        rows = latency_rows(results, part)
        body = f"{function(rows, place)}\n\n{results.source(rows)}" if rows else NOT_RUN
        parts.append(f"### {title}\n\n{body}")
    return "\n\n".join(parts)


def _throughput_part(rows: Sequence[Json], place: Place) -> str:
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


def _query_part(rows: Sequence[Json], place: Place) -> str:
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


def _context_part(rows: Sequence[Json], place: Place) -> str:
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


def bytes_section(results: Results, place: Place) -> str:
    """Bytes on disk per source token, of single chunks."""
    rows = latency_rows(results, "bytes")
    if not rows:
        return NOT_RUN
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


def memory_section(results: Results, place: Place) -> str:
    """Z-tokens against continuous memory tokens, after the same training."""
    rows = results.where(benchmark="memory_tokens")
    if not rows:
        return NOT_RUN
    file = draw_memory(rows, place.pictures / "memory_tokens.png")
    lines = []
    for arm, (label, _) in MEMORY_ARMS.items():
        chosen = [row for row in rows if row["arm"] == arm]
        if not chosen:
            continue
        cells = [label.replace("\n", " ")]
        cells += [score(pick(chosen, metric=metric)) for metric in MEMORY_METRICS]
        cells += [number(chosen[0]["bytes_per_source_token"], 1), number(chosen[0].get("work"))]
        lines.append(bold(cells, arm == "ztok"))
    header = ("", *MEMORY_METRICS.values(), "bytes per source token", "compute, positions")
    out = [place.image("Z-tokens and memory tokens", file), table(header, lines)]
    differences = [row for row in rows if row["metric"].endswith("_minus_memory")]
    if differences:
        out.append(
            "Z-tokens less memory tokens, on the same passages: "
            + "; ".join(
                f"{MEMORY_METRICS.get(r['metric'].removesuffix('_minus_memory'), r['metric'])} "
                f"{signed(r)}"
                for r in differences
            )
            + "."
        )
    return "\n\n".join([*out, results.source(rows)])


TRAINING_METRICS = {
    "source_tokens_per_second": "source tokens per second",
    "ztok_work_per_second": "positions per second",
    "lora_work_per_second": "positions per second, plain LoRA",
    "share_of_lora": "share of plain LoRA, %",
    "share_of_peak": "share of the device's peak, %",
}


def training_section(results: Results, place: Place) -> str:
    """Throughput of training, a line per data set and number format."""
    rows = results.where(benchmark="training_speed")
    if not rows:
        return NOT_RUN
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        found = [pick(rows, task=task, metric=metric) for metric in TRAINING_METRICS]
        lines.append([task, *(score(row, 0) for row in found)])
    return f"{table(('', *TRAINING_METRICS.values()), lines)}\n\n{results.source(rows)}"


def gold_section(results: Results, place: Place) -> str:
    """Answers of each data set when the paragraph that holds them is what is read."""
    out = []
    for task in dict.fromkeys(row["task"] for row in results.where(benchmark="qa")):
        rows = results.where(benchmark="qa", task=task)
        lines = []
        for row in sorted((r for r in rows if r["metric"] == "f1"), key=arm_order):
            same = {"arm": row["arm"], "rate": row["rate"]}
            share = pick(rows, metric="share_of_text_reader", **same)
            cells = [name_of(row["arm"], row["rate"]), score(row)]
            cells += ["" if share is None else score(share, 0)]
            cells += [number(row["context_tokens"]), number(row["bytes_per_source_token"], 2)]
            lines.append(bold(cells, row["arm"].startswith("ztok")))
        header = ("arm", "token F1", "share of the text reader's F1, %", "context tokens")
        made = table((*header, "bytes stored per source token"), lines)
        out.append(f"### {task}, {rows[0]['n']} questions\n\n{made}\n\n{results.source(rows)}")
    return "\n\n".join(out) or NOT_RUN


def repeated_section(results: Results, place: Place) -> str:
    """Reconstructed texts, by rate."""
    rows = results.where(benchmark="reconstruction")
    metrics = {"bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "characters_lost": "characters lost, %"}
    lines = []
    for task, rate in dict.fromkeys((row["task"], row["rate"]) for row in rows):
        own = [row for row in rows if (row["task"], row["rate"]) == (task, rate)]
        cells = [task, str(own[0]["n"]), f"{rate:g}"]
        lines.append([*cells, *(score(pick(own, metric=metric)) for metric in metrics)])
    if not lines:
        return NOT_RUN
    made = table(("text", "passages", "rate", *metrics.values()), lines)
    return f"{made}\n\n{results.source(rows)}"


def ablations_section(results: Results, place: Place) -> str:
    """Variants of the model and its training, after the same compute each."""
    rows = results.where(benchmark="ablations")
    if not rows:
        return NOT_RUN
    file = draw_ablations(rows, place.pictures / "ablations.png")
    lines = []
    for arm in ["default", *by_group(row for row in rows if row["arm"] != "default")]:
        chosen = [row for row in rows if row["arm"] == arm]
        cells = [f"`{arm}`", chosen[0]["task"], chosen[0]["what"]]
        for metric in ABLATION_METRICS:
            change = pick(chosen, metric=f"{metric}_minus_default")
            own = pick(chosen, metric=metric)
            cells.append(number(own["score"], 2) if own else "")
            cells.append("" if change is None else signed(change, 2))
        lines.append(bold(cells, arm == "default"))
    header = ["variant", "group", "what it is"]
    for label in ABLATION_METRICS.values():
        header += [f"nats per token of {label}", "against the default"]
    image = place.image("Variants against the default", file)
    return "\n\n".join([image, table(header, lines), results.source(rows)])


@dataclass(frozen=True)
class PaperTask:
    """A figure of the paper, and which of our rows stand beside it.

    Attributes:
        ours: tells whether a row does.
        differs: what is not the same on our side.
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
        lambda r: r["benchmark"] == "reconstruction" and "wiki" in r["task"]
        and r["metric"] == "bleu4",
        "passages of 2WikiMultiHopQA's corpus, cut to one window",
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
    "The rows are not like for like. Ours is a base LLM of 135 million parameters, trained on CPU "
    "cores, mostly on questions of SQuAD and FairytaleQA; the paper fine-tunes a far larger one. "
    "Its data sets stand under their own names above, ours in the last column. Where there is a "
    "question, our Z-tokens are spent by it."
)


def paper_section(results: Results, place: Place) -> str:
    """The paper's own tasks, its figures beside ours."""
    lines, used = [], []
    for task in PAPER:
        rows = [row for row in results.rows if task.ours(row)]
        used += rows
        by_question = [row for row in rows if row["arm"] == "ztok-focus"]
        ours = by_question or [row for row in rows if row["arm"] == "ztok"]
        text = [row for row in rows if row["arm"] == "text-reader"]
        lines.append(
            [task.task, task.metric, f"{task.figure:.2f}", _by_rate(ours) or NOT_RUN,
             _by_rate(text), task.differs]
        )  # fmt: skip
    reductions = [
        row
        for row in results.rows
        if row["arm"] in ("ztok", "ztok-focus")
        and row["metric"] == "f1"
        and row.get("source_tokens_per_position")
    ]
    best = max(reductions, key=lambda row: (row["rate"], row["score"]), default=None)
    if best:
        used.append(best)
        times = best["source_tokens_per_position"]
        ours_best = f"{times:.1f} times, where F1 on {best['task']} is {score(best)}"
    lines.append(
        ["token reduction", "source tokens per token read", "up to 18 times",
         ours_best if best else NOT_RUN, "", "any rate from 1 to 64 can be asked for"]
    )  # fmt: skip
    costs = _cost_lines(results)
    for line, rows in costs:
        lines.append(line)
        used += rows
    header = ("task", "score", "paper", "ours, Z-tokens", "ours, raw text", "what differs")
    source = f"\n\n{results.source(used)}" if used else ""
    return f"{table(header, lines)}\n\n{_PAPER_NOTE}{source}"


def _cost_lines(results: Results) -> list[tuple[list[str], list[Json]]]:
    """Memory and time against raw text, where it is longest; each line with its rows."""
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


def _by_rate(rows: Sequence[Json]) -> str:
    """Scores by rising rate."""
    cells = []
    for row in sorted(rows, key=lambda r: r["rate"] or 0):
        cell = score(row) + (f" at rate {row['rate']:g}" if row["arm"].startswith("ztok") else "")
        cells.append(cell + (" (ROUGE-L)" if row["metric"] == "rouge_l" else ""))
    return "; ".join(cells)


SECTIONS: dict[str, tuple[str, Callable[[Results, Place], str]]] = {
    "accuracy": ("Accuracy against context tokens", accuracy_section),
    "squad": ("SQuAD dev, over the whole corpus", partial(corpus_section, task=SQUAD)),
    "covid": ("COVID-QA, over long articles", partial(corpus_section, task=COVID)),
    "paired": ("Paired differences", paired_section),
    "longbench": ("LongBench", longbench_section),
    "latency": ("Latency", latency_section),
    "bytes": ("Bytes on disk", bytes_section),
    "paper": ("The paper's own tasks", paper_section),
    "memory": ("Against continuous memory tokens", memory_section),
    "training": ("Training speed", training_section),
    "ablations": ("Ablations", ablations_section),
    "gold": ("", gold_section),
    "repeated": ("", repeated_section),
    "headline": ("", headline_section),
}


# ----------------------------------------------------------------------------------------------
# Documents


def marked(name: str, body: str) -> str:
    return f"<!-- begin: {name} -->\n{body}\n<!-- end: {name} -->"


def skeleton() -> str:
    """A document with every section that has a title, and nothing in them."""
    parts = ["# Benchmarks", "Made by `python benchmarks/figures.py` from `benchmarks/results/`."]
    for name, (title, _) in SECTIONS.items():
        if title:
            parts.append(f"## {title}\n\n{marked(name, '')}")
    return "\n\n".join(parts) + "\n"


def fill(text: str, results: Results, place: Place) -> str:
    """The text with what stands between known markers made anew.

    Raises:
        DataError: a marker is open, or names no section.
    """
    begun = re.findall(r"<!-- begin: ([\w-]+) -->", text)
    for name in begun:
        if name not in SECTIONS:
            raise DataError(
                f"{place.document} marks a section {name!r}; there are {', '.join(SECTIONS)}."
            )
        pattern = re.compile(rf"<!-- begin: {name} -->.*?<!-- end: {name} -->", re.DOTALL)
        if not pattern.search(text):
            raise DataError(f"{place.document} has no <!-- end: {name} --> after its begin.")
        body = SECTIONS[name][1](results, place)
        text = pattern.sub(lambda _, n=name, b=body: marked(n, b), text)  # type: ignore[misc]
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the documents."""
    parser = Parser(description="Make all figures and tables from the results.")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results"
    )
    parser.add_argument(
        "--documents", type=Path, nargs="+", default=list(DOCUMENTS), metavar="FILE",
        help="default: those in docs/ and README.md",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=Path, default=ROOT / "docs", metavar="DIR", help="default: docs"
    )
    options = parser.parse_args(arguments)
    results = Results.load(options.results)
    if results.repeated:
        print(f"{results.repeated} rows stand in several files; the first file's were taken.")
    for document in options.documents:
        text = document.read_text(encoding="utf-8") if document.exists() else skeleton()
        filled = fill(text, results, Place(document, options.pictures))
        count = len(re.findall(r"<!-- begin: ", filled))
        if count:
            write_atomic(document, filled.encode())
        print(f"{document}: {count} section{'s' if count != 1 else ''}")


if __name__ == "__main__":
    run_script(main)
