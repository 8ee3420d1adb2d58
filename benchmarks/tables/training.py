"""Results of training: memory tokens, training speed, ablations."""

from __future__ import annotations

from plots import ABLATION_METRICS, MEMORY_ARMS, MEMORY_METRICS, draw_ablations, draw_memory
from result_rows import Results, by_group, pick
from tables.markdown import NOT_RUN, Place, bold, number, score, signed, table

TRAINING_METRICS = {
    "source_tokens_per_second": "source tokens per second",
    "ztok_work_per_second": "positions per second",
    "lora_work_per_second": "positions per second, plain LoRA",
    "share_of_lora": "share of plain LoRA, %",
    "share_of_peak": "share of the device's peak, %",
}


def memory_section(results: Results, place: Place) -> str:
    """A picture and a table: Z-tokens and continuous memory tokens after equal training."""
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


def training_section(results: Results, place: Place) -> str:
    """A table of training throughput, with a line per data set and number format."""
    rows = results.where(benchmark="training_speed")
    if not rows:
        return NOT_RUN
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        found = [pick(rows, task=task, metric=metric) for metric in TRAINING_METRICS]
        lines.append([task, *(score(row, 0) for row in found)])
    return f"{table(('', *TRAINING_METRICS.values()), lines)}\n\n{results.source(rows)}"


def ablations_section(results: Results, place: Place) -> str:
    """A picture and a table: variants of the model and of training, at equal compute."""
    rows = results.where(benchmark="ablations")
    if not rows:
        return NOT_RUN
    file = draw_ablations(rows, place.pictures / "ablations.png")
    lines = []
    for arm in ["default", *by_group(row for row in rows if row["arm"] != "default")]:
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
