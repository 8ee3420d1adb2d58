"""Faults that are really made, and what an index says afterwards.

    python benchmarks/faults.py --trials 200 --output DIR

Processes are killed at random moments of ingest, adding, deleting, compaction and query, while
another one asks; disks are full; files of every format are cut short, have one bit turned, or are
another's; the clock is set back; processes are forked after warm-up; a Redis server is stopped,
slow, full or killed. Afterwards every chunk is asked for, and place, text, metadata and Z-tokens
are compared with the right ones.

The pass of the LLM is replaced by weights that are computed from the tokens: what is under test is
all that lies on the disk. Linux only, as it forks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from breakage import damage, disks, kills, servers, surroundings
from breakage.outcome import Outcome
from breakage.world import World
from common import Parser, count, names, positive, run_script
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, write_results

Made = Outcome | list[Outcome]
Kind = Callable[[World, Path, int, np.random.Generator], Made]

KINDS: dict[str, Kind] = {
    "ingest": kills.ingest,
    "changes": kills.changes,
    "segments": kills.segments,
    "disk": disks.full_disk,
    "files": damage.damaged,
    "clock": surroundings.clock,
    "fork": surroundings.forks,
    "redis": servers.redis,
}


def make(world: World, kinds: Sequence[str], trials: int, seed: int) -> list[Outcome]:
    """Make the faults, each kind in a temporary folder of its own."""
    found: list[Outcome] = []
    for number, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, number])
        with tempfile.TemporaryDirectory(prefix="ztok-faults-") as folder:
            made = KINDS[kind](world, Path(folder), trials, rng)
        found += made if isinstance(made, list) else [made]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make all kinds, and write the results."""
    options = parse(arguments)
    world = World(options.seed)
    output = options.output or Path("results") / "faults"
    found: list[Outcome] = []
    for kind in options.kinds:
        for outcome in make(world, [kind], options.trials, options.seed):
            print(outcome, *outcome.wrong[:3], sep="\n  ", flush=True)
            found.append(outcome)
        write(output, found, world, options.seed)  # so that a run that is stopped leaves some
    if any(outcome.wrong for outcome in found):
        raise DataError(f"there were wrong answers; see {output}/results.json.")
    print(f"Written: {output}/results.json")


def write(output: Path, found: Sequence[Outcome], world: World, seed: int) -> None:
    """Write the results so far."""
    write_results(
        output,
        [row for outcome in found for row in rows(outcome)],
        seed=seed,
        checkpoint="default",
        device="cpu",
        fingerprint=world.compressor.fingerprint,
        benchmark="faults",
        note="Weights of tokens are computed, without the LLM; formats and files are real.",
    )


def rows(outcome: Outcome) -> list[Row]:
    """An outcome as rows of a result file."""
    values = {
        "faults": outcome.faults,
        "answers": outcome.checks,
        "wrong": len(outcome.wrong),
        "refused": outcome.refused,
        "most_lost": outcome.lost,
    }
    return [
        Row(
            "faults", outcome.kind, outcome.allowed, None, 0, metric, float(value),
            (float(value), float(value)), outcome.faults,
        )
        for metric, value in values.items()
    ]  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description="Make faults and check what comes of them.")
    parser.add_argument(
        "--kinds", type=names, default=list(KINDS), metavar="A,B",
        help=f"comma-separated, of {', '.join(KINDS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--trials", type=positive, default=200, metavar="N", help="default: 200")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    parser.add_argument("--seed", type=count, default=0, help="default: 0")
    options = parser.parse_args(arguments)
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        raise DataError(f"there is no kind of fault {unknown[0]!r}; give {', '.join(KINDS)}.")
    if not hasattr(os, "fork"):
        raise DataError("faults are made in forked processes; run this on Linux.")
    return options


if __name__ == "__main__":
    run_script(main)
