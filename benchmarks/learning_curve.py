"""Draw the learning curve of a training run: losses on unseen passages against positions seen.

    python benchmarks/learning_curve.py --log benchmarks/results/training/gpu/curve.jsonl \\
        --output docs/learning_curve.png

A line of the log is one measurement: `{"run", "positions", "set", "asked", "rate", "nats"}`. With
`--write` the log is that of `ztok train --write`; its lines with scores on held-out windows are
drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from common import Parser, run_script
from ztok_rag.cli.output import check_file
from ztok_rag.errors import DataError
from ztok_rag.files import show
from ztok_rag.jsonl import read_jsonl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {
    "squad": "answers, SQuAD dev",
    "fairy": "answers, FairytaleQA val",
    "repeat": "repeating, SQuAD dev",
}
FIELDS = ("run", "positions", "set", "asked", "rate", "nats")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the curve."""
    parser = Parser(description="Draw the learning curve of a training run.")
    parser.add_argument("--log", type=Path, required=True, metavar="FILE")
    parser.add_argument("--run", default="shipped", help="run in the log (default: shipped)")
    parser.add_argument("--write", action="store_true", help="the log is of a write head")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    check_file(options.output)
    if options.write:
        draw_write(read_write(options.log), options.output)
    else:
        draw(read_points(options.log, options.run), options.output)
    print(f"Written: {show(options.output)}")


def read_points(path: Path, run: str) -> dict[str, list[dict[str, Any]]]:
    """The measurements of one run, by set; questions are asked as the reader asks them.

    Raises:
        DataError: a line lacks a field, or the log has no such run.
    """

    def check(record: Mapping[str, Any]) -> None:
        if missing := [field for field in FIELDS if field not in record]:
            raise ValueError(f"there is no {missing[0]!r}")

    points: dict[str, list[dict[str, Any]]] = {}
    for record in read_jsonl(path, check=check):
        if record["run"] == run and (
            record["set"] == "repeat" or record["asked"].endswith("whole tail")
        ):
            points.setdefault(record["set"], []).append(record)
    if not points:
        raise DataError(f"{show(path)} has no measurements of the run {run!r}.")
    return points


def read_write(path: Path) -> list[dict[str, Any]]:
    """The lines of a write head's log that have scores on held-out windows.

    Raises:
        DataError: there is none.
    """
    lines = [record for record in read_jsonl(path) if "held_out_nats" in record]
    if not lines:
        raise DataError(f"{show(path)} has no scores on held-out windows.")
    return lines


def draw_write(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and agreement of each further token against the states seen, and tokens in a row."""
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 3.4), layout="constrained")
    seen = [line["positions"] / 1e3 for line in lines]
    for depth in range(len(lines[0]["held_out_nats"])):
        for axis, name, scale in ((axes[0], "nats", 1), (axes[1], "agreement", 100)):
            values = [scale * line[f"held_out_{name}"][depth] for line in lines]
            axis.plot(seen, values, marker="o", markersize=3, label=f"token {depth + 2}")
    axes[2].plot(seen, [line["held_out_run"] for line in lines], "k", marker="o", markersize=3)
    for axis, title in zip(
        axes,
        ("loss, nats", "likeliest token is the LLM's, %", "tokens in a row that are the LLM's"),
        strict=True,
    ):
        axis.set(title=title, xlabel="states seen, thousands")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw one panel per set, one line per rate."""
    figure, axes = plt.subplots(
        1, len(points), figsize=(4.2 * len(points), 3.4), squeeze=False, layout="constrained"
    )
    rates = sorted({record["rate"] for records in points.values() for record in records})
    for axis, (name, records) in zip(axes[0], points.items(), strict=True):
        for number, rate in enumerate(rates):
            own = sorted(
                (record["positions"] / 1e6, record["nats"])
                for record in records
                if record["rate"] == rate
            )
            if own:
                x, y = zip(*own, strict=True)
                axis.plot(x, y, f"C{number}", marker="o", markersize=3, label=f"rate {rate}")
        axis.set(title=TITLES.get(name, name), xlabel="positions seen, millions", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("loss, nats per token")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)
