"""The pictures of results, a function per picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from result_rows import (
    ARMS,
    PHASES,
    Json,
    Style,
    at_k,
    chunks,
    pick,
    query_arms,
    query_name,
    stored_name,
    throughput_name,
    ztok_rates,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RATE_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save(figure: Figure, file: Path) -> Path:
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return file


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Put labels in the right margin, apart from one another, each with a line to its point.

    Args:
        ends: x, y, text and colour of each.
    """
    low, high = axis.get_ylim()
    gap = 0.055 * (high - low)
    placed: list[float] = []
    ordered = sorted(ends, key=lambda end: end[1])
    for _, y, _, _ in ordered:
        placed.append(max(y, placed[-1] + gap) if placed else max(y, low + gap / 2))
    if placed and placed[-1] > high - gap / 2:
        ceiling = high - gap / 2
        for i in range(len(placed) - 1, -1, -1):
            placed[i] = min(placed[i], ceiling)
            ceiling = placed[i] - gap
    for (x, y, text, colour), place in zip(ordered, placed, strict=True):
        axis.annotate(
            text,
            xy=(x, y),
            xytext=(1.04, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.35, "linewidth": 0.7},
        )


def plain(axis: Axes) -> None:
    """Remove the frame and add a light grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)


def draw_accuracy(axis: Axes, rows: Sequence[Json]) -> None:
    """Token F1 against context tokens, a line per arm with its intervals.

    Args:
        rows: of one number of chunks.
    """
    ends = []
    with_context = [row for row in rows if row["arm"] != "none" and row["context_tokens"]]
    furthest = max((row["context_tokens"] for row in with_context), default=1.0)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        line = sorted((r for r in rows if r["arm"] == arm), key=lambda r: r["context_tokens"] or 0)
        style = ARMS.get(arm, Style(arm, "0.3"))
        scores = [row["score"] for row in line]
        if arm == "none":
            low, high = line[0]["ci95"]
            axis.axhspan(low, high, color=style.colour, alpha=0.1, linewidth=0)
            axis.axhline(scores[0], color=style.colour, linestyle="--", linewidth=1)
            ends.append((furthest, scores[0], style.label, style.colour))
            continue
        ours = arm.startswith("ztok")
        tokens = [row["context_tokens"] for row in line]
        bars = np.array([[r["score"] - r["ci95"][0], r["ci95"][1] - r["score"]] for r in line]).T
        axis.errorbar(
            tokens,
            scores,
            yerr=np.maximum(bars, 0),
            color=style.colour,
            marker=style.marker,
            markersize=7 if ours else 5,
            linewidth=2.4 if ours else 1.2,
            elinewidth=0.9,
            zorder=4 if ours else 3,
        )
        ends.append((tokens[-1], scores[-1], style.label, style.colour))
    axis.set_xscale("log")
    axis.set_ylim(0, None)
    ticks = sorted({round(row["context_tokens"]) for row in with_context})
    axis.set_xticks(_apart(ticks), [str(tick) for tick in _apart(ticks)])
    axis.minorticks_off()
    axis.set(xlabel="context tokens read (log scale)", ylabel="token F1, with 95% interval")
    plain(axis)
    label_ends(axis, ends)


def _apart(ticks: Sequence[int]) -> list[int]:
    """The ticks whose labels do not overlap on a log scale."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick > 1.35 * kept[-1]:
            kept.append(tick)
    return kept


def draw_accuracies(rows: Sequence[Json], ks: Sequence[int], file: Path) -> Path:
    """Token F1 against context tokens, a panel per number of chunks."""
    columns = min(2, len(ks))
    lines = -(-len(ks) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6.6 * columns, 4.2 * lines), squeeze=False)
    for axis, k in zip(axes.flat, ks, strict=False):
        draw_accuracy(axis, at_k(rows, k))
        if len(ks) > 1:
            axis.set_title(f"{chunks(k)} retrieved", fontsize=10)
    for axis in axes.flat[len(ks) :]:
        axis.remove()
    return save(figure, file)


def rate_colour(rates: Sequence[float], rate: float) -> str:
    return RATE_COLOURS[list(rates).index(rate) % len(RATE_COLOURS)]


def draw_throughput(rows: Sequence[Json], file: Path) -> Path:
    """Bars of source tokens per second: passes of the base LLM, and compression by rate."""
    chosen = [row for row in rows if row["metric"].endswith("tokens_per_second")]
    chosen.reverse()
    figure, axis = plt.subplots(figsize=(6.4, 0.55 * len(chosen) + 1.2))
    for place, row in enumerate(chosen):
        axis.plot([row["p10"], row["p90"]], [place, place], color="black", linewidth=1)
    ends = [max(row["score"], row["p90"]) for row in chosen]
    draw_bars(axis, chosen, throughput_name, ends, [f"{row['score']:,.0f}" for row in chosen])
    axis.set(xlabel="source tokens per second (median, and p10 to p90)")
    axis.margins(x=0.15)
    return save(figure, file)


def draw_bars(
    axis: Axes,
    rows: Sequence[Json],
    name: Callable[[Json], str],
    ends: Sequence[float],
    texts: Sequence[str],
) -> None:
    """A horizontal bar per row, from the bottom, with its name and a text at its end."""
    for place, (row, end, text) in enumerate(zip(rows, ends, texts, strict=True)):
        ours = row["arm"].startswith("ztok")
        axis.barh(place, row["score"], color=ARMS["ztok"].colour if ours else "0.6", height=0.62)
        axis.annotate(f" {text}", (end, place), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [name(row) for row in rows])
    plain(axis)
    axis.grid(axis="y", visible=False)


def draw_queries(rows: Sequence[Json], file: Path) -> Path:
    """Time to answer by phase, a panel per number of chunks."""
    ways, ks = query_arms(rows), sorted({row["k"] for row in rows})
    figure, axes = plt.subplots(
        1, len(ks), figsize=(2.6 * len(ks) + 1.6, 0.5 * len(ways) + 1.5), sharey=True, squeeze=False
    )
    for axis, k in zip(axes[0], ks, strict=True):
        for place, (task, arm, rate) in enumerate(reversed(ways)):
            left = 0.0
            for phase, colour in PHASES.items():
                row = pick(rows, task=task, arm=arm, rate=rate, k=k, metric=f"{phase}_ms")
                width = row["score"] / 1e3 if row else 0.0
                axis.barh(place, width, left=left, color=colour, height=0.62, label=phase)
                left += width
            total = pick(rows, task=task, arm=arm, rate=rate, k=k, metric="answer_ms")
            if total:
                text = f" {total['score'] / 1e3:.2f}"
                axis.annotate(text, (left, place), va="center", fontsize=8)
        axis.set_yticks(range(len(ways)), [query_name(*way) for way in reversed(ways)])
        axis.set_title(chunks(k), fontsize=10)
        axis.set_xlabel("seconds (medians)")
        axis.margins(x=0.2)
        plain(axis)
        axis.grid(axis="y", visible=False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    first = dict(zip(labels[: len(PHASES)], handles[: len(PHASES)], strict=True))
    figure.legend(
        first.values(), first.keys(), loc="lower center", ncols=4, fontsize=8, frameon=False,
        bbox_to_anchor=(0.5, -0.06),
    )  # fmt: skip
    return save(figure, file)


def draw_context(rows: Sequence[Json], file: Path) -> Path:
    """Time to first token and KV cache against the source tokens of the context."""
    times = [row for row in rows if row["metric"] == "ttft_ms"]
    rates = ztok_rates(times)
    figure, axes = plt.subplots(1, 2, figsize=(12.4, 3.9))
    panels = (("score", 1e-3, "seconds to first token"), ("kv_bytes", 2**-20, "KV cache, MiB"))
    for axis, (name, scale, title) in zip(axes, panels, strict=True):
        ends = []
        for arm, rate in sorted({(row["arm"], row["rate"]) for row in times}, key=str):
            line = sorted(
                (r for r in times if (r["arm"], r["rate"]) == (arm, rate)),
                key=lambda row: row["source_tokens"],
            )
            raw = arm != "ztok"
            colour = "black" if raw else rate_colour(rates, rate)
            x = [row["source_tokens"] for row in line]
            y = [scale * row[name] for row in line]
            axis.plot(x, y, marker="h" if raw else "o", markersize=5, color=colour)
            if name == "score":
                low, high = ([scale * row[p] for row in line] for p in ("p10", "p90"))
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            ends.append((x[-1], y[-1], "raw text" if raw else f"rate {rate:g}", colour))
        lengths = sorted({row["source_tokens"] for row in rows})
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(lengths, [f"{length / 1000:g}k" for length in lengths])
        axis.minorticks_off()
        axis.set(xlabel="source tokens of context (log scale)", ylabel=f"{title} (log scale)")
        plain(axis)
        for x_end, y_end, text, colour in ends:
            axis.annotate(
                f"  {text}", (x_end, y_end), color=colour, fontsize=8, va="center",
                annotation_clip=False,
            )  # fmt: skip
    return save(figure, file)


def draw_bytes(rows: Sequence[Json], file: Path) -> Path:
    """Bars of bytes per source token, on a log scale."""
    chosen = sorted(
        (row for row in rows if row["metric"] == "bytes_per_source_token"),
        key=lambda r: -r["score"],
    )
    figure, axis = plt.subplots(figsize=(6.4, 0.42 * len(chosen) + 1.1))
    scores = [row["score"] for row in chosen]
    texts = [f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in scores]
    draw_bars(axis, chosen, stored_name, scores, texts)
    axis.set_xscale("log")
    axis.set(xlabel="bytes per source token (log scale)")
    axis.margins(x=0.12)
    return save(figure, file)


def draw_serving(rows: Sequence[Json], file: Path) -> Path:
    """Lines of answers per second against how many ask at once, for each arm."""
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    askers = sorted({row["k"] for row in rows})
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [pick(rows, arm=arm, k=k, metric="answers_per_second") for k in askers]
        found = [row for row in own if row is not None]
        style = ARMS[arm]
        scores = [row["score"] for row in found]
        errors = [
            [max(0.0, row["score"] - row["ci95"][0]) for row in found],
            [max(0.0, row["ci95"][1] - row["score"]) for row in found],
        ]
        axis.errorbar(
            [row["k"] for row in found], scores, yerr=errors, color=style.colour,
            marker=style.marker, label=style.label, capsize=3,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(askers, [str(k) for k in askers])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set(xlabel="askers at once (log scale)", ylabel="answers per second")
    axis.legend(frameon=False)
    plain(axis)
    return save(figure, file)


def draw_writing(rows: Sequence[Json], drafts: Sequence[Json], file: Path) -> Path:
    """Perplexity against passes per token, and how much of the write head's drafts is right."""
    panels = 2 if drafts else 1
    figure, found = plt.subplots(1, panels, figsize=(6.2 * panels, 3.9), squeeze=False)
    axes = found[0]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for number, task in enumerate(tasks):
        points: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["task"] == task:
                points.setdefault(row["what"], {})[row["metric"]] = row["score"]
        line = sorted(
            (own["passes"] / own["tokens"], own["perplexity"])
            for what, own in points.items()
            if "read back" not in what and "drawn" not in what
        )
        axes[0].plot(
            *zip(*line, strict=True), marker="o", markersize=5, color=f"C{number}", label=task
        )
    axes[0].set(xlabel="LLM passes per token", ylabel="perplexity under the plain base")
    axes[0].legend(frameon=False, fontsize=8)
    for number, task in enumerate(dict.fromkeys(row["task"] for row in drafts)):
        own = sorted(
            (int(r["metric"].rsplit("_", 1)[1]), r["score"]) for r in drafts if r["task"] == task
        )
        axes[1].plot(
            *zip(*own, strict=True), marker="o", markersize=5, color=f"C{number}", label=task
        )
    if drafts:
        axes[1].set(xlabel="tokens of a guess", ylabel="tokens that are right, %", ylim=(0, 100))
        axes[1].legend(frameon=False, fontsize=7, ncols=2)
    for axis in axes:
        plain(axis)
    return save(figure, file)
