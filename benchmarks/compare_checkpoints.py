"""Compare how well checkpoints predict answers, teacher-forced, with intervals.

Every answer token counts, so fewer questions are needed than with F1 to tell two checkpoints
apart. Contexts are one passage or several. Z-tokens are allocated by content alone, with more for
the answers ("in focus"), or by query-aware selection ("chosen"). Intervals are by passage; with
query-aware selection, by question.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ztok_rag.codec.model import ZModel
from ztok_rag.evaluation import Row, bootstrap_ci, write_results
from ztok_rag.evaluation.intervals import ratio
from ztok_rag.training.batches import BatchSettings, PackedBatches
from ztok_rag.training.examples import Kind
from ztok_rag.training.focused import FocusedBatches, FocusedSettings
from ztok_rag.training.held_out import HELD_OUT, TokenScores, score_tokens
from ztok_rag.training.objective import Objective, TrainSettings
from ztok_rag.training.passages import Passage, read_passages

SINGLE = dataclasses.replace(HELD_OUT, batch_tokens=1800, max_source_tokens=450)
FOCUSED = dataclasses.replace(SINGLE, focus=1.0, focus_times=(5.0, 5.0))
CHOSEN = FocusedSettings(share=1.0, passages=(1,), rates=(8.0,))
Settings = Mapping[str, tuple[BatchSettings | FocusedSettings, float]]
READ_SETTINGS: Settings = {
    "one passage": (SINGLE, 4.0),
    "one passage, in focus": (FOCUSED, 8.0),
    "six passages, in focus": (dataclasses.replace(FOCUSED, together=(6,)), 8.0),
    "one passage, chosen": (CHOSEN, 8.0),
    "five passages, chosen": (dataclasses.replace(CHOSEN, passages=(5,)), 8.0),
}
TEXT_SETTINGS: Settings = {
    "one passage": (SINGLE, 1.0),
    "six passages": (dataclasses.replace(SINGLE, together=(6,)), 1.0),
}


def score(
    checkpoint: Path,
    passages: Sequence[Passage],
    adapter: str,
    settings: Settings,
    device: str | None,
) -> tuple[str, dict[str, TokenScores]]:
    """The fingerprint of a checkpoint, and its scores of answer tokens in each setting."""
    model = ZModel.from_pretrained(checkpoint, device=device)
    objective = Objective(model, TrainSettings())
    scores = {}
    for name, (own, rate) in settings.items():
        batches = (
            PackedBatches(passages, model.base.tokenizer, own, seed=0)
            if isinstance(own, BatchSettings)
            else FocusedBatches(model, passages, SINGLE, seed=0, focused=own, progress=False)
        )
        scores[name] = score_tokens(objective, batches, rate, adapter=adapter)[Kind.ANSWER]
        print(f"{checkpoint}, {name}: {scores[name].mean_nats:.3f} nats per answer token")
    return model.fingerprint, scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Score, print and write `results.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="the first is compared with")
    parser.add_argument("--names", help="what to call them, comma-separated")
    parser.add_argument("--data", type=Path, action="append", required=True, help="JSON Lines")
    parser.add_argument("--limit", type=int, default=36, help="passages of each file")
    parser.add_argument("--adapter", choices=["read", "text"], default="read")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    names = options.names.split(",") if options.names else [str(c) for c in options.checkpoints]
    settings = TEXT_SETTINGS if options.adapter == "text" else READ_SETTINGS
    rows = []
    fingerprint = ""
    for file in options.data:
        task = f"{file.parent.name}/{file.stem}"
        found = [passage for passage in read_passages(file) if passage.questions]
        order = np.random.default_rng(0).permutation(len(found))[: options.limit]
        passages = [found[i] for i in sorted(order.tolist())]
        first: dict[str, TokenScores] = {}
        for name, checkpoint in zip(names, options.checkpoints, strict=True):
            fingerprint, scores = score(
                checkpoint, passages, options.adapter, settings, options.device
            )
            first = first or scores
            for setting, own in scores.items():
                rate = settings[setting][1]
                for metric, values in (
                    ("answer_nats", own.nats),
                    ("answer_nats_minus_first", own.nats - first[setting].nats),
                    ("answer_accuracy", 100 * own.right),
                ):
                    value = float(values.sum() / own.tokens.sum())
                    pairs = np.stack([values, own.tokens], axis=1)
                    interval = bootstrap_ci(pairs, statistic=ratio)
                    rows.append(
                        Row("checkpoints", task, name, rate, 0, metric, value, interval,
                            len(values), setting=setting, fingerprint=fingerprint)
                    )  # fmt: skip
    write_results(options.output, rows, seed=0, checkpoint=fingerprint, device=options.device)
    for row in rows:
        low, high = row.ci95
        print(f"{row.task}, {row.setting}, {row.arm}: {row.metric} {row.score:+.3f} "
              f"[{low:+.3f}, {high:+.3f}]")  # fmt: skip


if __name__ == "__main__":
    main()
