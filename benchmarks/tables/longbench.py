"""LongBench: a line per arm, a column per task."""

from __future__ import annotations

from result_rows import Results, at_k, chunks, ks_of, name_of, pick
from tables.markdown import Place, bold, number, score, table


def longbench_section(results: Results, place: Place) -> str:
    """A table per number of chunks, with a line per arm and a column per task."""
    rows = [row for row in results.where(benchmark="longbench") if "_minus_" not in row["metric"]]
    if not rows:
        return ""
    parts = []
    for k in ks_of(rows):
        here = at_k(rows, k)
        tasks = {(row["task"], row["metric"]) for row in here}
        tasks = sorted(tasks, key=lambda pair: (pair[0] != "average", pair[0]))
        header = ["arm", "real rate"]
        for task, metric in tasks:
            n = max(row["n"] for row in here if (row["task"], row["metric"]) == (task, metric))
            header.append(f"{task}, {metric.replace('_', ' ')} of {n}")
        lines = []
        for arm, rate in dict.fromkeys((row["arm"], row["rate"]) for row in here):
            own = [row for row in here if (row["arm"], row["rate"]) == (arm, rate)]
            cells = [score(pick(own, task=task, metric=metric)) for task, metric in tasks]
            real = number((pick(own, task="average") or own[0]).get("real_rate"), 2)
            lines.append(bold([name_of(arm, rate), real, *cells], arm.startswith("ztok")))
        parts += [f"### {chunks(k) if k else 'the whole context'}", table(header, lines)]
    return "\n\n".join([*parts, results.source(rows)])
