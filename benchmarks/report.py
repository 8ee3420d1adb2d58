"""`report.html`: a self-contained page with tables, plots and some answers."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.evaluation import Arm, PredictionLog, Question

_EXAMPLES = 8

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e21; max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.note { background: #fff7dd; border-left: 4px solid #d9a400; padding: .6rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e2e4e8; }
th { font-weight: 600; border-bottom-color: #8b929c; }
.text { text-align: left; }
tr.first td { border-top: 1px solid #8b929c; }
img { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: #5c636d; } dd { margin: 0; overflow-wrap: anywhere; }
.answers td { vertical-align: top; text-align: left; overflow-wrap: anywhere; }
"""


def write_report(
    path: Path,
    results: Mapping[str, Any],
    tasks: Mapping[str, Sequence[Question]],
    arms: Sequence[Arm],
    log: PredictionLog,
) -> None:
    """Write the page atomically. It loads no other files.

    Args:
        path: of the page.
        results: as returned by `write_results`.
        tasks: the questions of each task.
        arms: all arms.
        log: their answers.
    """
    rows = results["rows"]
    title = f"{results['benchmark']}: scores and costs by arm"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="note">{_text(results["note"])}</p>',
        "<h2>Scores</h2>",
        _image(_score_figure(rows), "Score of each arm by task, with 95% intervals"),
        "<h2>Scores against context tokens</h2>",
        _image(_cost_figure(rows), "Score against mean context tokens per question"),
        "<h2>All numbers</h2>",
        _table(rows),
        "<h2>Some answers</h2>",
        _answers(tasks, arms, log),
        "<h2>This run</h2>",
        _run_facts(results),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


def _text(value: object) -> str:
    return html.escape(str(value))


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arm of each row, with its number of chunks if there are several."""
    several = len({row["k"] for row in rows if row["rate"] is not None}) > 1
    return [
        Arm(row["arm"], row["rate"], None).label
        + (f", k={row['k']}" if several and row["rate"] is not None else "")
        for row in rows
    ]


def _main_rows(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The row of the first metric of each task and label, for plots."""
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row, label in zip(rows, _labels(rows), strict=True):
        first.setdefault((row["task"], label), row)
    return first


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _score_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    shown = _main_rows(rows)
    tasks = list(dict.fromkeys(task for task, _ in shown))
    labels = list(dict.fromkeys(label for _, label in shown))
    figure, axes = _figure(10, 1.2 + 0.24 * len(tasks) * (len(labels) + 1))
    step = 1 / (len(labels) + 1)
    for index, label in enumerate(labels):
        mine = [row for (_, name), row in shown.items() if name == label]
        places = [tasks.index(row["task"]) + (index + 1) * step - 0.5 for row in mine]
        scores = [row["score"] for row in mine]
        low = [max(0, row["score"] - row["ci95"][0]) for row in mine]
        high = [max(0, row["ci95"][1] - row["score"]) for row in mine]
        axes.barh(places, scores, height=step * 0.9, label=label, color=f"C{index}")
        axes.errorbar(scores, places, xerr=[low, high], fmt="none", ecolor="#333", elinewidth=1)
    names = [
        f"{task}\n({next(row['metric'] for (name, _), row in shown.items() if name == task)})"
        for task in tasks
    ]
    axes.set_yticks(range(len(tasks)), names)
    axes.invert_yaxis()
    axes.set_xlabel("score, 0 to 100, with 95% bootstrap interval")
    axes.set_xlim(left=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _cost_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    shown = {key: row for key, row in _main_rows(rows).items() if row["context_tokens"] is not None}
    average = {key: row for key, row in shown.items() if row["task"] == "average"}
    shown = average or shown
    labels = list(dict.fromkeys(label for _, label in shown))
    figure, axes = _figure(8, max(4.5, 0.25 * len(labels)))
    for index, label in enumerate(labels):
        mine = [row for (_, name), row in shown.items() if name == label]
        x = [row["context_tokens"] for row in mine]
        y = [row["score"] for row in mine]
        low = [max(0, row["score"] - row["ci95"][0]) for row in mine]
        high = [max(0, row["ci95"][1] - row["score"]) for row in mine]
        axes.errorbar(x, y, yerr=[low, high], fmt="o", color=f"C{index}", label=label, capsize=3)
    axes.set_xlabel("context tokens per question (positions of LLM input), mean")
    axes.set_ylabel("mean score over tasks" if average else "score")
    axes.set_xlim(left=-0.02 * max([1, *(row["context_tokens"] for row in shown.values())]))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _image(figure: Any, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_text(alt)}" src="data:image/svg+xml;base64,{data}">'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        ("context_tokens", "context tokens", 0, 1),
        ("bytes_per_source_token", "bytes per source token", 2, 1),
        ("prefill_ms", "prefill, ms", 0, 1),
        ("ttft_ms", "first token, ms", 0, 1),
        ("kv_bytes", "KV cache, MiB", 2, 2**20),
        ("shorten_ms", "shortening, ms", 1, 1),
        ("truncated", "cut prompts", 0, 1),
    )
    head = "".join(f"<th>{name}</th>" for _, name, _, _ in columns)
    lines = []
    task = None
    order = {task: place for place, task in enumerate(dict.fromkeys(r["task"] for r in rows))}
    labelled = zip(rows, _labels(rows), strict=True)
    for row, label in sorted(labelled, key=lambda pair: order[pair[0]["task"]]):
        cells = "".join(
            f"<td>{'-' if row.get(key) is None else f'{row[key] / unit:.{digits}f}'}</td>"
            for key, _, digits, unit in columns
        )
        first = ' class="first"' if row["task"] != task else ""
        lines.append(
            f'<tr{first}><td class="text">{_text(row["task"])}</td>'
            f'<td class="text">{_text(label)}</td>'
            f'<td class="text">{_text(row["metric"])}</td>'
            f"<td>{row['score']:.1f}</td>"
            f"<td>{row['ci95'][0]:.1f} to {row['ci95'][1]:.1f}</td>"
            f"<td>{row['n']}</td>{cells}</tr>"
        )
        task = row["task"]
    return (
        '<div class="scroll"><table><tr><th class="text">task</th><th class="text">arm</th>'
        '<th class="text">metric</th><th>score</th><th>95% interval</th><th>questions</th>'
        f"{head}</tr>\n" + "\n".join(lines) + "</table></div>"
    )


def _answers(
    tasks: Mapping[str, Sequence[Question]], arms: Sequence[Arm], log: PredictionLog
) -> str:
    """The first questions of each task, with the answers of all arms."""
    in_turn = [
        questions[i] for i in range(_EXAMPLES) for questions in tasks.values() if i < len(questions)
    ]
    blocks = []
    for question in in_turn[:_EXAMPLES]:
        lines = [
            f"<tr><td><b>question</b> ({_text(question.task)})</td>"
            f"<td><b>{_text(_short(question.text))}</b></td></tr>",
            f"<tr><td>reference</td><td>{_text(_short(' / '.join(question.answers)))}</td></tr>",
        ]
        for arm in arms:
            record = log.get(question, arm)
            answer = _short(record["prediction"]) if record else "-"
            lines.append(f"<tr><td>{_text(arm.label)}</td><td>{_text(answer)}</td></tr>")
        blocks.append('<table class="answers">' + "".join(lines) + "</table><br>")
    return "\n".join(blocks)


def _short(text: str, most: int = 300) -> str:
    """The text on one line. Of a long text, the end is kept, as prompts end with the question."""
    text = " ".join(text.split())
    return text if len(text) <= most else "… " + text[-most:]


def _run_facts(results: Mapping[str, Any]) -> str:
    facts = {
        "command": results["command"],
        "commit": results["commit"] or "not run from a checkout",
        "checkpoint": f"{results['checkpoint']} ({results['fingerprint']})",
        "seed": results["seed"],
        **results["machine"],
    }
    items = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items())
    return f"<dl>{items}</dl>"
