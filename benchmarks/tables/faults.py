"""What came of faults that were made, and of fuzzing."""

from __future__ import annotations

from result_rows import Results, pick
from tables.markdown import Place, number, table


def faults_section(results: Results, place: Place) -> str:
    """A table of counts, by kind of fault."""
    rows = results.where(benchmark="faults")
    if not rows:
        return ""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        cells = [task, own[0]["arm"]]
        for metric in ("faults", "answers", "wrong", "refused", "most_lost"):
            cells.append(number((pick(own, metric=metric) or {}).get("score")))
        lines.append(cells)
    header = (
        "fault", "what may be there then", "times", "answers compared", "wrong answers",
        "errors or warnings that name it", "most chunks to compress again",
    )  # fmt: skip
    return f"{table(header, lines)}\n\n{results.source(rows)}"


def fuzz_section(results: Results, place: Place) -> str:
    """A table of inputs and failures, by parser."""
    rows = results.where(benchmark="fuzz")
    if not rows:
        return ""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        cells = [(pick(own, metric=name) or {}).get("score") for name in ("inputs", "failures")]
        lines.append([task, *map(number, cells)])
    total = sum(row["score"] for row in rows if row["metric"] == "inputs")
    made = table(("parser", "inputs", "failures"), lines)
    return f"{number(total)} inputs in all.\n\n{made}\n\n{results.source(rows)}"
