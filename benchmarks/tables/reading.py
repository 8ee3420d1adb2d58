"""What the parts of reading give, what drafts save, and how small lossless files are."""

from __future__ import annotations

from plots import draw_writing
from result_rows import Results, pick
from tables.markdown import Place, bold, number, score, signed, table

_DEFAULT, _TEXT = "default", "text"
_DRAFTS = ("speculate", "lookup", "head", "both")
_WRITING = {
    "passes": 1, "seconds": 1, "tokens": 1, "tokens_per_pass": 2, "perplexity": 2, "rouge_l": 1,
}  # fmt: skip
_FOLLOW_UPS = {
    "question": "the question as it is",
    "reader": "what the reader writes, asked to rewrite it",
    "follow-up": "what `ZTokenLLM` makes of it",
}
_BATCHES = {
    "batches": "together",
    "batches, 2 threads": "together, by two threads",
    "unguarded": "together, without the guard",
}

_GUARD = (
    "The guard: in float32, a window near the edge of a level is weighed again alone; in bf16 on a "
    "CPU, every window is weighed alone. Threads that wait for each other, as they do beside other "
    "work, take processor time."
)


def ablations_section(results: Results, place: Place) -> str:
    """A table per data set: F1 of each variant at each rate, and its difference to the default."""
    out = []
    for task in dict.fromkeys(row["task"] for row in results.where(benchmark="ablations")):
        rows = results.where(benchmark="ablations", task=task)
        rates = sorted({row["rate"] for row in rows if row["arm"] == _DEFAULT})
        header = ["what is changed"]
        for rate in rates:
            header += [f"F1 at {rate:g}", "minus default", "real rate"]
        lines = []
        for arm in dict.fromkeys(row["arm"] for row in rows):
            cells = [next(row["what"] for row in rows if row["arm"] == arm)]
            for rate in rates:
                own = {"arm": arm, "rate": 1.0 if arm == _TEXT else rate}
                f1 = pick(rows, metric="f1", **own)
                minus = pick(rows, metric=f"f1_minus_{_DEFAULT}", **own)
                cells += [score(f1), "" if minus is None else signed(minus)]
                cells += [number((f1 or {}).get("real_rate"), 2)]
            lines.append(bold(cells, arm == _DEFAULT))
        made = table(header, lines)
        out.append(f"### {task}, {rows[0]['n']} questions\n\n{made}\n\n{results.source(rows)}")
    return "\n\n".join(out)


def follow_ups_section(results: Results, place: Place) -> str:
    """A table of how often each way of asking a follow-up question finds its context."""
    rows = results.where(benchmark="follow_ups")
    if not rows:
        return ""
    columns = list(dict.fromkeys((row["task"], row["k"]) for row in rows))
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = (pick(rows, arm=arm, task=task, k=k) for task, k in columns)
        cells = ["" if row is None else score(row) for row in found]
        lines.append(bold([_FOLLOW_UPS.get(arm, arm), *cells], arm == "follow-up"))
    header = ["retrieved by", *(f"{task}, best {k}" for task, k in columns)]
    made = table(header, lines)
    note = results.note("follow_ups")
    return f"{made}\n\n{note} The rule was chosen on such dialogues. {results.source(rows)}"


def speculation_section(results: Results, place: Place) -> str:
    """A table of passes and seconds with drafts and without, by task."""
    rows = results.where(benchmark="speculation")
    ways = [w for w in _DRAFTS if any(row["arm"] == w for row in rows)]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        cells = [task, number(own[0].get("answer_tokens"), 1)]
        for metric, digits in (("passes", 1), ("seconds_per_answer", 2)):
            before = pick(own, metric=metric, arm="one by one")
            cells.append(number((before or {}).get("score"), digits))
            for way in ways:
                after = pick(own, metric=metric, arm=way)
                if before is None or after is None:
                    cells.append("")
                    continue
                ratio = before["score"] / after["score"]
                cells.append(f"{number(after['score'], digits)} ({ratio:.1f} times)")
        same = [row["score"] for row in own if row["metric"] == "same"]
        lines.append([*cells, number(min(same, default=None))])
    if not lines:
        return ""
    header = (
        "task", "tokens of an answer", "passes without", *ways, "seconds without", *ways,
        "equal answers, %",
    )  # fmt: skip
    return f"{table(header, lines)}\n\n{results.source(rows)}"


def writing_section(results: Results, place: Place) -> str:
    """A table of what is written in Z-space and in text space, and a picture of it."""
    rows = results.where(benchmark="writing")
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for arm in dict.fromkeys(row["arm"] for row in rows if row["task"] == task):
            own = results.where(benchmark="writing", task=task, arm=arm)
            cells = [task, next(row["what"] for row in own)]
            for metric, digits in _WRITING.items():
                found = pick(own, metric=metric)
                cells.append(number((found or {}).get("score"), digits))
            lines.append(cells)
    if not lines:
        return ""
    drafts = [
        row
        for row in results.where(benchmark="speculation", arm="head")
        if row["metric"].startswith("accepted_of_")
    ]
    header = (
        "task", "way", "passes", "seconds", "tokens", "tokens of a pass", "perplexity",
        "ROUGE-L",
    )  # fmt: skip
    image = place.image(
        "Writing in Z-space", draw_writing(rows, drafts, place.pictures / "writing.png")
    )
    return f"{image}\n\n{table(header, lines)}\n\n{results.source(rows)}"


def lossless_section(results: Results, place: Place) -> str:
    """A table of bits per character, by document and code."""
    rows = results.where(benchmark="lossless", metric="bits_per_character")
    if not rows:
        return ""
    codes = list(dict.fromkeys(row["arm"] for row in rows))
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [pick(rows, task=task, arm=code) for code in codes]
        lines.append([task, *(number((row or {}).get("score"), 2) for row in own)])
    return f"{table(('document', *codes), lines)}\n\n{results.source(rows)}"


def determinism_section(results: Results, place: Place) -> str:
    """A table of what differs when texts are compressed in batches, by number format."""
    rows = results.where(benchmark="determinism")
    if not rows:
        return ""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for arm in dict.fromkeys(row["arm"] for row in rows if row["task"] == task):
            own = [row for row in rows if (row["task"], row["arm"]) == (task, arm)]
            cells = [_BATCHES.get(arm, arm), task]
            for metric in ("tokens_differ", "texts_differ", "z_tokens_differ"):
                row = pick(own, metric=metric)
                cells.append(f"{score(row, 2)}, n={row['n']:,}" if row else "")
            seconds = pick(own, metric="cpu_seconds")
            lines.append([*cells, number(seconds["score"] if seconds else None, 1)])
    header = (
        "compressed", "base in", "% of tokens in another level (95% interval)",
        "% of texts with other bytes", "% of texts with other Z-tokens at rate 8",
        "processor seconds",
    )  # fmt: skip
    note = results.note("determinism")
    return f"{table(header, lines)}\n\n{_GUARD} {note} {results.source(rows)}"
