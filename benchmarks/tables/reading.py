"""What the parts of reading give, what drafts save, and how small lossless files are."""

from __future__ import annotations

from result_rows import Results, pick
from tables.markdown import Place, bold, number, score, signed, table

_DEFAULT, _TEXT = "default", "text"
_BATCHES = {
    "batches": "in batches",
    "batches, 2 threads": "in batches, by two threads",
    "unguarded": "in batches, without the guard",
}


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


def speculation_section(results: Results, place: Place) -> str:
    """A table of passes and seconds with drafts and without, by task."""
    rows = results.where(benchmark="speculation")
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        cells = [task, number(own[0].get("answer_tokens"), 1)]
        for metric, digits in (("passes", 1), ("seconds_per_answer", 2)):
            before = pick(own, metric=metric, arm="one by one")
            after = pick(own, metric=metric, arm="speculate")
            if before is None or after is None:
                cells += ["", "", ""]
                continue
            ratio = before["score"] / after["score"]
            cells += [number(before["score"], digits), number(after["score"], digits)]
            cells += [f"{ratio:.1f}"]
        same = pick(own, metric="same", arm="speculate")
        lines.append([*cells, number((same or {}).get("score"))])
    if not lines:
        return ""
    header = (
        "task", "tokens of an answer", "passes before", "with drafts", "times fewer",
        "seconds before", "with drafts", "times faster", "equal answers, %",
    )  # fmt: skip
    return f"{table(header, lines)}\n\n{results.source(rows)}"


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
            seconds = pick(own, metric="seconds")
            lines.append([*cells, number(seconds["score"] if seconds else None, 1)])
    header = (
        "compressed", "base in", "% of tokens in another level (95% interval)",
        "% of texts with other bytes", "% of texts with other Z-tokens at rate 8", "seconds",
    )  # fmt: skip
    note = next(
        run["note"] for run in results.runs.values() if run.get("benchmark") == "determinism"
    )
    return f"{table(header, lines)}\n\n{note} {results.source(rows)}"
