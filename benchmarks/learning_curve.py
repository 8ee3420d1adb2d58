"""The learning curve of a training run: scores of its snapshots against tokens seen.

    ztok train … --output RUN --snapshot-every 100
    ztok eval DATA.jsonl --checkpoint RUN/snapshots/step-000100 --output EVALS/step-000100   # etc.
    python benchmarks/learning_curve.py --run RUN --evals EVALS --output docs/learning_curve.png

Beside the picture it writes the same numbers as JSON.
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
from ztok_rag.errors import DataError
from ztok_rag.sequence import write_atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {"f1": "answer F1", "rouge_l": "reconstruction ROUGE-L", "bleu4": "reconstruction BLEU-4"}


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
    log = [json.loads(line) for line in path.open(encoding="utf-8")]
    seen = np.cumsum([0, *(record["source_tokens"] for record in log)])
    points = read_points(options.evals, seen)
    draw(points, log, seen, options.output)
    data = {"points": points, "steps": len(log), "source_tokens": int(seen[-1])}
    write_atomic(options.output.with_suffix(".json"), (json.dumps(data, indent=2) + "\n").encode())
    print(f"Written: {options.output}, {options.output.with_suffix('.json').name}")


def read_points(folder: Path, seen: np.ndarray) -> list[dict[str, Any]]:
    """Scores of all snapshots, with the tokens that each had seen.

    Raises:
        DataError: there are none.
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


def draw(
    points: Sequence[dict[str, Any]], log: Sequence[dict[str, Any]], seen: np.ndarray, file: Path
) -> None:
    """A panel per metric, a line per rate with its interval; then the training loss."""
    panels = {m: title for m, title in PANELS.items() if any(p["metric"] == m for p in points)}
    figure, axes = plt.subplots(1, len(panels) + 1, figsize=(4.2 * (len(panels) + 1), 3.8))
    rates = sorted({p["rate"] for p in points if p["arm"] == "ztok"})
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
    axis = axes[-1]
    for rate in (r for r in rates if any(record["rate"] == r for record in log)):
        chosen = [
            (seen[i + 1] / 1e3, record["answer"])
            for i, record in enumerate(log)
            if record["rate"] == rate and record["answer"] is not None
        ]
        x, y = (np.array(values) for values in zip(*chosen, strict=True))
        width = max(1, len(y) // 12)
        smooth = np.convolve(y, np.ones(width) / width, mode="valid")
        axis.plot(x[width - 1 :], smooth, color=colours[rate], label=f"rate {rate:g}")
    axis.set(title="training loss of answers", xlabel="source tokens seen (thousands)")
    axis.set_ylabel("nats per token")
    axis.legend(fontsize=7)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)
