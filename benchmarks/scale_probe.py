"""Processor time and peak memory of a fresh process at an index on disk, by what it does.

    python benchmarks/scale_probe.py --work FOLDER FOLDER --output DIR

The folders are those of `--work` of `benchmarks/scale.py`, one for each size. A process of its own
opens the index for each step, in this order: it opens it only, searches, searches without the index
of vectors, adds 10,000 chunks, and calls `optimize()`. The added chunks stay. Processor time is of
all threads, and depends less on what else the machine does than time by the clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.vector_stores.types import VectorStoreQuery
from tqdm import tqdm

from common import Parser, run_script, write_without_model
from scale import (
    AT_ONCE,
    EXACT_QUESTIONS,
    QUESTIONS,
    TOP_K,
    Made,
    Measured,
    open_corpus,
    peak_bytes,
    reset_peak,
    row,
    search,
)
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row
from ztok_rag.index.corpus import Corpus

ADDITIONS = 10
STEPS = ("open", "search", "exact", "add", "optimize")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every step at every index, and write the results."""
    parser = Parser(description="Time and memory of a fresh process at an index on disk.")
    parser.add_argument("--work", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", choices=STEPS, help="take one step, and print what it took")
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(take(options.step, options.work[0], options.seed)))
        return
    if options.output is None:
        parser.error("the argument --output is missing")
    rows: list[Row] = []
    for work in options.work:
        chunks = open_corpus("disk", work / "disk").chunk_count
        for step in tqdm(STEPS, desc=f"{chunks:,} chunks"):
            taken = in_a_process(step, work, options.seed)
            rows += [
                row(
                    Measured("disk", chunks, f"{step}_{metric}", values),
                    options.seed,
                    "scale_probe",
                )
                for metric, values in taken.items()
                if values
            ]
    note = (
        f"A fresh process opens the index and does one thing: {QUESTIONS} searches, "
        f"{EXACT_QUESTIONS} searches without the index of vectors, {ADDITIONS} additions of "
        f"{AT_ONCE} chunks without their Z-tokens, or optimize() after that. Scores are medians; "
        "cpu_ms is processor time of all threads, peak_bytes resident memory, and recall that of "
        f"{EXACT_QUESTIONS} searches with the default settings. No model is loaded, but PyTorch is."
    )
    write_without_model(
        options.output,
        rows,
        seed=options.seed,
        benchmark="scale_probe",
        note=note,
    )


def in_a_process(step: str, work: Path, seed: int) -> dict[str, list[float]]:
    """What a process of its own takes for one step."""
    command = [sys.executable, __file__, "--work", str(work), "--step", step, "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"the step {step!r} failed: {done.stderr.strip()}")
    taken: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return taken


def take(step: str, work: Path, seed: int) -> dict[str, list[float]]:
    """Take one step: its times in milliseconds, and the peak memory."""
    made = Made(seed)
    reset_peak()
    corpus = open_corpus("disk", work / "disk")
    times = [timed(act) for act in actions(step, corpus, made)]
    # The first search opens files that the others find open.
    kept = times[1:] if step in ("search", "exact") else times
    recall: list[float] = []
    if step == "exact":
        questions = made.questions(EXACT_QUESTIONS)
        _, best = search(corpus, questions, exact=True)
        _, found = search(corpus, questions)
        recall = [100 * len(a & b) / TOP_K for a, b in zip(best, found, strict=True)]
    return {
        "recall_at_10": recall,
        "cpu_ms": [cpu for cpu, _ in kept],
        "ms": [wall for _, wall in kept],
        "peak_bytes": [float(peak_bytes())],
    }


def actions(step: str, corpus: Corpus, made: Made) -> list[Callable[[], Any]]:
    """What is timed."""
    if step == "add":
        return [_addition(corpus, made, number) for number in range(ADDITIONS)]
    if step == "optimize":
        return [corpus.optimize]
    if step == "open":
        return []
    count, how = (EXACT_QUESTIONS, {"exact": True}) if step == "exact" else (QUESTIONS, {})
    return [
        lambda q=question: corpus.search(
            VectorStoreQuery(query_embedding=q, similarity_top_k=TOP_K), **how
        )
        for question in made.questions(count + 1)
    ]


def _addition(corpus: Corpus, made: Made, number: int) -> Callable[[], Any]:
    nodes = made.nodes(corpus.chunk_count + number * AT_ONCE)
    hashes = {node.ref_doc_id or "": str(node.ref_doc_id) for node in nodes}
    return lambda: corpus.change(nodes, hashes, ())


def timed(act: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of processor time, and by the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    act()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


if __name__ == "__main__":
    run_script(main)
