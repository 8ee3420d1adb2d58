"""Draw the learning curve of a training run: scores of its snapshots against tokens seen.

    ztok train … --output RUN --snapshot-every 100
    ztok eval DATA.jsonl --checkpoint RUN/snapshots/step-000100 --output EVALS/step-000100   # etc.
    python benchmarks/learning_curve.py --run RUN --evals EVALS --output docs/learning_curve.png

The numbers are written as JSON beside the picture.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from common import Parser, run_script
from ztok_rag.codec.sequence import write_atomic
from ztok_rag.errors import DataError
from ztok_rag.evaluation import bootstrap_ci
from ztok_rag.jsonl import read_jsonl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {"f1": "answer F1", "rouge_l": "reconstruction ROUGE-L", "bleu4": "reconstruction BLEU-4"}
LOSSES = {
    "answer": "training loss of answers",
    "reconstruction": "training loss of reconstruction",
}
WARM_UP = 0.05
"""Share of the run's tokens, at its start, whose losses are not fitted."""
FEWEST = 20
"""Fewest steps at a rate for its losses to be fitted."""
BINS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the curve."""
    parser = Parser(description="Draw the learning curve of a training run.")
    parser.add_argument(
        "--run", type=Path, required=True, metavar="PATH", help="folder of the run, or its log"
    )
    parser.add_argument("--evals", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    path = options.run / "log.jsonl" if options.run.is_dir() else options.run
    log = read_jsonl(path)
    seen = np.cumsum([0, *(record["source_tokens"] for record in log)])
    points = read_points(options.evals, seen)
    slopes = fit_slopes(log, seen)
    draw(points, slopes, log, seen, options.output)
    data = {"points": points, "slopes": slopes, "steps": len(log), "source_tokens": int(seen[-1])}
    write_atomic(options.output.with_suffix(".json"), (json.dumps(data, indent=2) + "\n").encode())
    print(f"Written: {options.output}, {options.output.with_suffix('.json').name}")


def read_points(folder: Path, seen: np.ndarray) -> list[dict[str, Any]]:
    """Read the scores of all snapshots, and the tokens that each has seen.

    Raises:
        DataError: there is none.
    """
    points = []
    for path in sorted(folder.glob("step-*/results.json")):
        step = int(path.parent.name.removeprefix("step-"))
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row["metric"] in PANELS:
                keys = ("task", "arm", "rate", "metric", "score", "ci95", "n")
                known = {key: row[key] for key in keys}
                points.append({"step": step, "source_tokens": int(seen[step]), **known})
    if not points:
        raise DataError(f"{folder} holds no step-*/results.json; run `ztok eval` on snapshots.")
    return points


def losses(
    log: Sequence[dict[str, Any]], seen: np.ndarray, loss: str, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens seen and nats per token of the steps at a rate, after the warm-up."""
    chosen = [
        (seen[i + 1], record[loss])
        for i, record in enumerate(log)
        if record["rate"] == rate and record[loss] is not None and seen[i + 1] > WARM_UP * seen[-1]
    ]
    x, y = np.array(chosen, dtype=np.float64).reshape(-1, 2).T
    return x, y


def slope_of(drawn: np.ndarray) -> np.ndarray:
    """The slope of a line through each resample of points, given `[resamples, n, 2]`."""
    return np.array([np.polyfit(x, y, 1)[0] for x, y in drawn.transpose(0, 2, 1)])


def fit_slopes(log: Sequence[dict[str, Any]], seen: np.ndarray) -> list[dict[str, Any]]:
    """Fit each training loss, at each frequent rate, as linear in the logarithm of tokens seen."""
    slopes = []
    for loss in LOSSES:
        for rate in sorted({record["rate"] for record in log}):
            x, y = losses(log, seen, loss, rate)
            if len(x) < FEWEST:
                continue
            doublings = np.log2(x / seen[-1])
            interval = bootstrap_ci(np.stack([doublings, y], axis=1), statistic=slope_of)
            slope, end = np.polyfit(doublings, y, 1)
            slopes.append(
                {
                    "loss": loss,
                    "rate": rate,
                    "nats_at_end": round(float(end), 4),
                    "nats_per_doubling": round(float(slope), 4),
                    "ci95": [round(end, 4) for end in interval],
                    "n": len(x),
                }
            )
    return slopes


def draw(
    points: Sequence[dict[str, Any]],
    slopes: Sequence[dict[str, Any]],
    log: Sequence[dict[str, Any]],
    seen: np.ndarray,
    file: Path,
) -> None:
    """A panel per metric with a line per rate, then a panel per training loss."""
    panels = {m: title for m, title in PANELS.items() if any(p["metric"] == m for p in points)}
    fitted = {n: title for n, title in LOSSES.items() if any(s["loss"] == n for s in slopes)}
    number = len(panels) + len(fitted)
    figure, grid = plt.subplots(1, number, figsize=(4.2 * number, 3.8), squeeze=False)
    axes = grid[0]
    rates = sorted(
        {p["rate"] for p in points if p["arm"] == "ztok"} | {slope["rate"] for slope in slopes}
    )
    colours = dict(zip(rates, plt.cm.viridis(np.linspace(0.1, 0.85, len(rates))), strict=True))
    for axis, (metric, title) in zip(axes, panels.items(), strict=False):
        lines: dict[tuple[str, Any], list[dict[str, Any]]] = defaultdict(list)
        for point in points:
            if point["metric"] == metric:
                lines[point["arm"], point["rate"]].append(point)
        for (arm, rate), line in sorted(lines.items(), key=str):
            x = [p["source_tokens"] / 1e3 for p in line]
            low, high = zip(*(p["ci95"] for p in line), strict=True)
            colour = colours[rate] if arm == "ztok" else {"none": "0.6"}.get(arm, "black")
            style = "-" if arm == "ztok" else "--"
            label = f"Z-tokens, rate {rate:g}" if arm == "ztok" else arm
            axis.plot(x, [p["score"] for p in line], style, marker=".", color=colour, label=label)
            axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="source tokens seen (thousands)", ylim=(0, None))
        axis.legend(fontsize=7)
    for axis, (loss, title) in zip(axes[len(panels) :], fitted.items(), strict=True):
        for slope in (slope for slope in slopes if slope["loss"] == loss):
            x, y = losses(log, seen, loss, slope["rate"])
            colour, change = colours[slope["rate"]], slope["nats_per_doubling"]
            seen_means, loss_means = (
                [part.mean() for part in np.array_split(values, BINS)] for values in (x / 1e3, y)
            )
            axis.plot(seen_means, loss_means, ".", color=colour)
            ends = np.array([x[0], x[-1]])
            axis.plot(
                ends / 1e3,
                slope["nats_at_end"] + change * np.log2(ends / seen[-1]),
                color=colour,
                label=f"rate {slope['rate']:g}: {change:+.2f} per doubling",
            )
        axis.set(title=title, xlabel="source tokens seen (thousands)", ylabel="nats per token")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)
