"""Every figure and table of the documents in `docs/` and the README, from the results at hand.

    python benchmarks/figures.py

It reads all `results.json` below `benchmarks/results/`, draws the pictures into `docs/`, and puts
each section between its markers `<!-- begin: NAME -->` and `<!-- end: NAME -->` in the documents;
all else in them stays as it is. A document that is not there yet is begun with all sections.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from common import Parser, run_script
from ztok_rag.errors import DataError
from ztok_rag.sequence import write_atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Json = dict[str, Any]

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DOCUMENTS = (
    *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "ablations", "model_card")),
    ROOT / "README.md",
)
NOT_RUN = "not run"
SQUAD = "squad/dev"


@dataclass(frozen=True)
class Style:
    """How an arm is named and drawn; the colours are told apart by colour-blind readers too."""

    label: str
    colour: str
    marker: str = "o"


ARMS = {
    "none": Style("no context", "0.55", "_"),
    "truncate": Style("truncated text", "#E69F00", "s"),
    "fewer-chunks": Style("fewer chunks", "#882255", "v"),
    "self-information": Style("self-information pruning", "#56B4E9", "^"),
    "longllmlingua": Style("LongLLMLingua", "#CC79A7", "D"),
    "trimwise": Style("trimwise", "#009E73", "P"),
    "sentences": Style("best sentences", "#999933", "X"),
    "pieces": Style("our choice, read as text", "#44AA99", "d"),
    "ztok": Style("Z-tokens", "#D55E00"),
    "ztok-focus": Style("Z-tokens, focused", "#0072B2", "*"),
    "text": Style("raw text, plain base", "0.4", "p"),
    "text-reader": Style("raw text, text reader", "black", "h"),
}
RATE_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STORED = {
    "text": "raw text",
    "gzip": "gzip",
    "zstd": "zstd",
    "embedding-fp16": "embeddings, fp16",
    "kv-cache-fp16": "KV cache, fp16",
    "ztok-store": "Z-tokens for all rates, with sentences' bits",
}


# ----------------------------------------------------------------------------------------------
# Results


@dataclass
class Results:
    """The rows of all result files, each with the `file` that it is from.

    Attributes:
        rows: of two rows of one thing, that of the first file.
        runs: what else each file says, by its name.
        repeated: how many rows were left out as another file has them already, with another score.
    """

    rows: list[Json] = field(default_factory=list)
    runs: dict[str, Json] = field(default_factory=dict)
    repeated: int = 0

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read `results.json` files at any depth below `folder`.

        Raises:
            DataError: there are none, or one is damaged.
        """
        found = cls()
        known: dict[tuple[Any, ...], Json] = {}
        for path in sorted(folder.rglob("results.json")):
            name = path.parent.relative_to(folder).as_posix()
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                rows = data.pop("rows")
                for row in rows:
                    key = tuple(row[part] for part in ("benchmark", "task", "arm", "metric"))
                    key = (*key, row["rate"], row["k"])
                    if key not in known:
                        known[key] = {**row, "file": name}
                    elif known[key]["score"] != row["score"]:
                        found.repeated += 1
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is damaged ({error}); make it again.") from error
            found.runs[name] = data
        if not found.runs:
            raise DataError(f"{folder} holds no results.json; run a benchmark first.")
        found.rows = list(known.values())
        return found

    def where(self, **wanted: Any) -> list[Json]:
        """The rows whose fields are as wanted."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in wanted.items())]

    def source(self, rows: Iterable[Json]) -> str:
        """A sentence on where rows come from."""
        parts = []
        for name in dict.fromkeys(row["file"] for row in rows):
            run = self.runs[name]
            machine = run.get("machine", {})
            where = f"{machine.get('cores')} cores of {machine.get('processor')}"
            if device := machine.get("device"):
                where += f", device {device}"
            print_ = run.get("fingerprint")
            checkpoint = f", checkpoint `{print_}`" if print_ else ""
            parts.append(f"`benchmarks/results/{name}/results.json` ({where}{checkpoint})")
        return f"From {', '.join(parts)}."


def squad_rows(results: Results, metric: str = "f1") -> list[Json]:
    """Rows of questions over the corpus of SQuAD's dev split."""
    return results.where(benchmark="rag_qa", task=SQUAD, metric=metric)


def at_k(rows: Sequence[Json], k: int) -> list[Json]:
    """The rows with `k` chunks, and those without context; arms in the order of `ARMS`."""
    order = {name: place for place, name in enumerate(ARMS)}
    chosen = [row for row in rows if row["k"] == k or row["arm"] == "none"]
    return sorted(chosen, key=lambda r: (order.get(r["arm"], 99), r["arm"], r["rate"] or 0))


def ks_of(rows: Sequence[Json]) -> list[int]:
    """How many chunks were read, by rising number."""
    return sorted({row["k"] for row in rows if row["arm"] != "none"})


def name_of(arm: str, rate: float | None) -> str:
    """An arm as a table names it, with the rate where that is a choice."""
    label = ARMS[arm].label if arm in ARMS else arm
    no_choice = rate is None or arm in ("none", "text", "text-reader")
    return label if no_choice else f"{label}, rate {rate:g}"


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
# Pictures


def save(figure: Figure, file: Path) -> Path:
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return file


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names in the right margin, apart from one another, each led to from its point.

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
    """Without a frame, on a light grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)


def draw_accuracy(axis: Axes, rows: Sequence[Json]) -> None:
    """Token F1 against the context tokens read, a line per arm with its intervals.

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
    """Those of rising ticks that have room for their text on a log scale."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick > 1.35 * kept[-1]:
            kept.append(tick)
    return kept


def draw_accuracies(rows: Sequence[Json], ks: Sequence[int], file: Path) -> Path:
    """A panel per number of chunks read."""
    columns = min(2, len(ks))
    lines = -(-len(ks) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6.6 * columns, 4.2 * lines), squeeze=False)
    for axis, k in zip(axes.flat, ks, strict=False):
        draw_accuracy(axis, at_k(rows, k))
        if len(ks) > 1:
            axis.set_title(f"{k} chunk{'s' if k > 1 else ''} retrieved", fontsize=10)
    for axis in axes.flat[len(ks) :]:
        axis.remove()
    return save(figure, file)


def rate_colour(rates: Sequence[float], rate: float) -> str:
    return RATE_COLOURS[list(rates).index(rate) % len(RATE_COLOURS)]


def ztok_rates(rows: Iterable[Json]) -> list[float]:
    return sorted({row["rate"] for row in rows if row["arm"] == "ztok"})


def draw_throughput(rows: Sequence[Json], file: Path) -> Path:
    """Bars of source tokens per second: the base's own passes, and compression by rate."""
    chosen = [row for row in rows if row["metric"].endswith("tokens_per_second")]
    figure, axis = plt.subplots(figsize=(6.4, 0.55 * len(chosen) + 1.2))
    for place, row in enumerate(reversed(chosen)):
        ours = row["arm"].startswith("ztok")
        axis.barh(place, row["score"], color=ARMS["ztok"].colour if ours else "0.6", height=0.62)
        axis.plot([row["p10"], row["p90"]], [place, place], color="black", linewidth=1)
        axis.annotate(
            f" {row['score']:,.0f}", (max(row["score"], row["p90"]), place), va="center", fontsize=8
        )
    axis.set_yticks(range(len(chosen)), [throughput_name(row) for row in reversed(chosen)])
    axis.set(xlabel="source tokens per second (median, and p10 to p90)")
    axis.margins(x=0.15)
    plain(axis)
    axis.grid(axis="y", visible=False)
    return save(figure, file)


def throughput_name(row: Json) -> str:
    if row["arm"] == "ztok":
        return f"compress, rate {row['rate']:g}"
    if row["arm"] == "ztok-store":
        return "compress, all rates"
    return f"base, {row['metric'].removesuffix('_tokens_per_second')}"


PHASES = {
    "retrieve": "#56B4E9",
    "postprocess": "#E69F00",
    "prefill": "#0072B2",
    "decode": "#CCCCCC",
}


def query_arms(rows: Iterable[Json]) -> list[tuple[str, str, float]]:
    """Task, arm and rate of each way to answer: raw text first, then warm and cold Z-tokens."""
    order = {"query raw": 0, "query warm": 1, "query cold": 2}
    found = {(row["task"], row["arm"], row["rate"]) for row in rows if row["task"] in order}
    return sorted(found, key=lambda way: (order[way[0]], way[2]))


def query_name(task: str, arm: str, rate: float) -> str:
    return "raw text" if arm != "ztok" else f"rate {rate:g}, {task.removeprefix('query ')}"


def draw_queries(rows: Sequence[Json], file: Path) -> Path:
    """A panel per number of chunks: the time to answer, cut into its phases."""
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
        axis.set_title(f"{k} chunk{'s' if k > 1 else ''}", fontsize=10)
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


def pick(rows: Iterable[Json], **wanted: Any) -> Json | None:
    """The first row whose fields are as wanted."""
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def draw_context(rows: Sequence[Json], file: Path) -> Path:
    """Two panels against the source tokens of the context: first token, and KV cache."""
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


def stored_name(row: Json) -> str:
    if row["arm"] == "ztok":
        return f"Z-tokens, rate {row['rate']:g}"
    return STORED.get(row["arm"], str(row["arm"]))


def draw_bytes(rows: Sequence[Json], file: Path) -> Path:
    """Bars of bytes per source token, on a log scale."""
    chosen = sorted(
        (row for row in rows if row["metric"] == "bytes_per_source_token"),
        key=lambda r: -r["score"],
    )
    figure, axis = plt.subplots(figsize=(6.4, 0.42 * len(chosen) + 1.1))
    for place, row in enumerate(chosen):
        ours = row["arm"].startswith("ztok")
        axis.barh(place, row["score"], color=ARMS["ztok"].colour if ours else "0.6", height=0.62)
        text = f" {row['score']:,.2f}" if row["score"] < 100 else f" {row['score']:,.0f}"
        axis.annotate(text, (row["score"], place), va="center", fontsize=8)
    axis.set_yticks(range(len(chosen)), [stored_name(row) for row in chosen])
    axis.set_xscale("log")
    axis.set(xlabel="bytes per source token (log scale)")
    axis.margins(x=0.12)
    plain(axis)
    axis.grid(axis="y", visible=False)
    return save(figure, file)


def draw_memory(rows: Sequence[Json], file: Path) -> Path:
    """A panel per score: both ways side by side, with their intervals."""
    metrics = [m for m in MEMORY_METRICS if pick(rows, metric=m)]
    figure, axes = plt.subplots(1, len(metrics), figsize=(2.9 * len(metrics), 3.2), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for place, arm in enumerate(MEMORY_ARMS):
            if row := pick(rows, metric=metric, arm=arm):
                low, high = row["ci95"]
                axis.bar(place, row["score"], color=MEMORY_ARMS[arm][1], width=0.6)
                axis.plot([place, place], [low, high], color="black", linewidth=1)
                axis.annotate(
                    f"{row['score']:.1f}", (place, high), ha="center", va="bottom", fontsize=8
                )
        axis.set_xticks(
            range(len(MEMORY_ARMS)), [label for label, _ in MEMORY_ARMS.values()], fontsize=8
        )
        axis.set_title(MEMORY_METRICS[metric], fontsize=10)
        axis.margins(y=0.15)
        plain(axis)
    return save(figure, file)


MEMORY_ARMS = {"ztok": ("Z-tokens", "#D55E00"), "memory": ("memory\ntokens", "0.6")}
MEMORY_METRICS = {
    "f1": "answer token F1",
    "answer_accuracy": "answer tokens right, %",
    "reconstruction_accuracy": "text tokens right, %",
}


ABLATION_METRICS = {
    "answer_nats": "answers",
    "reconstruction_nats": "reconstruction",
}


def draw_ablations(rows: Sequence[Json], file: Path) -> Path:
    """What each variant changes, in nats per token, with its interval; the better to the left."""
    arms = _by_group(row for row in rows if row["arm"] != "default")
    size = (8.5, 0.8 + 0.24 * len(arms))
    figure, axes = plt.subplots(1, len(ABLATION_METRICS), figsize=size, sharey=True)
    for axis, (metric, label) in zip(axes, ABLATION_METRICS.items(), strict=True):
        for place, arm in enumerate(arms):
            row = pick(rows, arm=arm, metric=f"{metric}_minus_default")
            if row is None:
                continue
            low, high = row["ci95"]
            colour = "#009E73" if high < 0 else "#D55E00" if low > 0 else "0.55"
            axis.plot([low, high], [place, place], color=colour, linewidth=2)
            axis.plot(row["score"], place, "o", color=colour, markersize=4)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_xlabel(f"nats per token of {label}, against the default", fontsize=8)
        axis.set_yticks(range(len(arms)), arms, fontsize=8)
        plain(axis)
    axes[0].invert_yaxis()
    return save(figure, file)


def _by_group(rows: Iterable[Json]) -> list[str]:
    """Variants, those of a group together."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["task"], []).append(row["arm"])
    return list(dict.fromkeys(arm for arms in groups.values() for arm in arms))


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
    """The picture of F1 against context tokens, of the fewest chunks that most arms read."""
    rows = squad_rows(results)
    if not ks_of(rows):
        return NOT_RUN
    k = max(ks_of(rows), key=lambda k: (len({r["arm"] for r in rows if r["k"] == k}), -k))
    file = draw_accuracies(rows, [k], place.pictures / "accuracy.png")
    return place.image("Token F1 against context tokens read", file)


def squad_section(results: Results, place: Place) -> str:
    """A table per number of chunks, after a picture with a panel for each."""
    rows = squad_rows(results)
    ks = ks_of(rows)
    if not ks:
        return NOT_RUN
    parts = []
    if len(ks) > 1:
        file = draw_accuracies(rows, ks, place.pictures / "accuracy_by_k.png")
        parts.append(place.image("Token F1 against context tokens, by chunks retrieved", file))
    for k in ks:
        chosen = at_k(rows, k)
        n = " or ".join(str(n) for n in sorted({row["n"] for row in chosen}))
        parts.append(f"### {k} chunk{'s' if k > 1 else ''} retrieved ({n} questions)")
        parts.append(arms_table(chosen, squad_rows(results, "exact_match")))
    return "\n\n".join([*parts, results.source(rows)])


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
    """The table of the fewest chunks, for the README."""
    rows = squad_rows(results)
    if not ks_of(rows):
        return NOT_RUN
    return arms_table(at_k(rows, ks_of(rows)[0]), squad_rows(results, "exact_match"))


def paired_section(results: Results, place: Place) -> str:
    """What one arm scores more than another on the same questions."""
    rows = [
        row
        for row in results.where(benchmark="rag_qa", task=SQUAD)
        if "_minus_" in row["metric"] and row["metric"].startswith("f1")
    ]
    if not rows:
        return NOT_RUN
    lines = []
    for row in sorted(rows, key=lambda r: (r["k"], *_arm_order(r), r["metric"])):
        other = row["metric"].removeprefix("f1_minus_").replace("_", "-")
        low, high = row["ci95"]
        cells = [
            name_of(row["arm"], row["rate"]),
            name_of(other, None),
            str(row["k"]),
            signed(row),
            "higher" if low > 0 else "lower" if high < 0 else "not told apart",
        ]
        lines.append(cells)
    header = ("arm", "against", "chunks", "difference in token F1", "")
    return f"{table(header, lines)}\n\n{results.source(rows)}"


def _arm_order(row: Json) -> tuple[int, float]:
    names = list(ARMS)
    return names.index(row["arm"]) if row["arm"] in names else 99, row["rate"] or 0.0


def longbench_section(results: Results, place: Place) -> str:
    """A line per task, a column per arm."""
    rows = [row for row in results.where(benchmark="longbench") if "_minus_" not in row["metric"]]
    if not rows:
        return NOT_RUN
    arms = sorted(
        {(row["arm"], row["rate"]) for row in rows},
        key=lambda arm: _arm_order({"arm": arm[0], "rate": arm[1]}),
    )
    lines = []
    for k in ks_of(rows):
        here = [row for row in rows if row["k"] == k or row["arm"] == "none"]
        tasks = {(row["task"], row["metric"]) for row in here}
        for task, metric in sorted(tasks, key=lambda pair: (pair[0] == "average", pair[0])):
            chosen = [row for row in here if (row["task"], row["metric"]) == (task, metric)]
            cells = [score(pick(chosen, arm=arm, rate=rate)) for arm, rate in arms]
            n = max(row["n"] for row in chosen)
            lines.append([task, metric.replace("_", " "), str(k or "all"), str(n), *cells])
    header = ("task", "score", "chunks", "questions", *(name_of(*arm) for arm in arms))
    return f"{table(header, lines)}\n\n{results.source(rows)}"


def latency_rows(results: Results, part: str) -> list[Json]:
    """Rows of one part of the latency benchmark."""
    return [r for r in results.where(benchmark="latency") if r["task"].split()[0] == part]


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


def gold_section(results: Results, place: Place) -> str:
    """Answers of each data set when the paragraph that holds them is what is read."""
    out = []
    for task in dict.fromkeys(row["task"] for row in results.where(benchmark="qa")):
        rows = results.where(benchmark="qa", task=task)
        lines = []
        for row in sorted((r for r in rows if r["metric"] == "f1"), key=_arm_order):
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
    for arm in ["default", *_by_group(row for row in rows if row["arm"] != "default")]:
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
    header = ("task", "score", "paper", "ours, Z-tokens", "ours, raw text", "what differs")
    source = f"\n\n{results.source(used)}" if used else ""
    return f"{table(header, lines)}\n\n{_PAPER_NOTE}{source}"


def _by_rate(rows: Sequence[Json]) -> str:
    """Scores by rising rate."""
    cells = []
    for row in sorted(rows, key=lambda r: r["rate"] or 0):
        cell = score(row) + (f" at rate {row['rate']:g}" if row["arm"] == "ztok" else "")
        cells.append(cell + (" (ROUGE-L)" if row["metric"] == "rouge_l" else ""))
    return "; ".join(cells)


SECTIONS: dict[str, tuple[str, Callable[[Results, Place], str]]] = {
    "accuracy": ("Accuracy against context tokens", accuracy_section),
    "squad": ("SQuAD dev, over the whole corpus", squad_section),
    "paired": ("Paired differences", paired_section),
    "longbench": ("LongBench", longbench_section),
    "latency": ("Latency", latency_section),
    "bytes": ("Bytes on disk", bytes_section),
    "paper": ("The paper's own tasks", paper_section),
    "memory": ("Against continuous memory tokens", memory_section),
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
