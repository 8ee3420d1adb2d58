"""The results of `ztok eval`: answers from the gold paragraph, and reconstruction."""

from __future__ import annotations

from result_rows import Results, arm_order, name_of, pick
from tables.markdown import Place, bold, number, score, table


def gold_section(results: Results, place: Place) -> str:
    """A table per data set: answers read from the gold paragraph."""
    out = []
    for task in dict.fromkeys(row["task"] for row in results.where(benchmark="qa")):
        rows = results.where(benchmark="qa", task=task)
        lines = []
        for row in sorted((r for r in rows if r["metric"] == "f1"), key=arm_order):
            same = {"arm": row["arm"], "rate": row["rate"]}
            share = pick(rows, metric="share_of_text_reader", **same)
            cells = [name_of(row["arm"], row["rate"]), score(row)]
            cells += ["" if share is None else score(share, 0), number(row.get("real_rate"), 2)]
            cells += [number(row["context_tokens"]), number(row["bytes_per_source_token"], 2)]
            lines.append(bold(cells, row["arm"].startswith("ztok")))
        header = (
            "arm", "token F1", "share of the text reader's F1, %", "real rate", "context tokens",
            "bytes stored per source token",
        )  # fmt: skip
        made = table(header, lines)
        out.append(f"### {task}, {rows[0]['n']} questions\n\n{made}\n\n{results.source(rows)}")
    return "\n\n".join(out)


def repeated_section(results: Results, place: Place) -> str:
    """A table of reconstruction scores, by text, way and rate."""
    rows = results.where(benchmark="reconstruction")
    metrics = {"bleu4": "BLEU-4", "exact_match": "exact, %", "rouge_l": "ROUGE-L"}
    lines = []
    for task, arm, rate in dict.fromkeys((row["task"], row["arm"], row["rate"]) for row in rows):
        own = [r for r in rows if (r["task"], r["arm"], r["rate"]) == (task, arm, rate)]
        by = "repeated by the reader" if arm == "repeat" else "decompressed"
        cells = [task, by, str(own[0]["n"]), f"{rate:g}", number(own[0].get("real_rate"), 2)]
        lines.append([*cells, *(score(pick(own, metric=metric)) for metric in metrics)])
    if not lines:
        return ""
    made = table(("text", "by", "passages", "rate", "real rate", *metrics.values()), lines)
    return f"{made}\n\n{results.source(rows)}"
