"""Time, memory and bytes of a store as it grows to a million texts, in a folder and in Redis.

    python benchmarks/store_size.py --output DIR

No model runs. Each text has two entries, random bytes as long as the codes and the embeddings of
sentences of a chunk are. The script starts a Redis server on loopback with an append-only file that
is synced each second, and ends it. At each of `--sizes` it looks up and puts the codes of 64 texts,
deletes all entries of one text, counts entries and bytes, and takes the server's memory and the
bytes on disk. What it puts there it deletes, so that the next size begins with the same store.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from breakage.redis_server import Server, is_installed, running
from common import Parser, counts, names, run_script, write_without_model
from scale import CODE_BYTES, FINGERPRINT, SENTENCE_BYTES, Measured, disk_bytes
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, bootstrap_ci
from ztok_rag.evaluation.intervals import median
from ztok_rag.storage.store import ZStore

CODES, SENTENCES = f"text-{FINGERPRINT}", "sentences"
KINDS = {CODES: CODE_BYTES, SENTENCES: SENTENCE_BYTES}
"""The entries of a text: their kinds, and bytes of each."""

ARMS = ("folder", "redis")
TOGETHER = 64
"""Texts of a look-up, and of a change."""

REPEATS = 30
FILLED_AT_ONCE = 5_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the stores, and write the results."""
    options = parse(arguments)
    measured: list[Measured] = []
    for arm in options.arms:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            measured += grow(arm, Path(folder), options)
    note = (
        f"Each text has {len(KINDS)} entries, of {' and '.join(map(str, KINDS.values()))} random "
        f"bytes; no model runs. Medians of {REPEATS} measurements after a first one, with p10 to "
        f"p90; filled {FILLED_AT_ONCE} texts at a time. Redis is on loopback, with an append-only "
        "file that is synced each second. Other work ran on the machine."
    )
    rows = [row(each, options.seed) for each in measured]
    write_without_model(
        options.output,
        rows,
        seed=options.seed,
        benchmark="store_size",
        note=note,
    )


def grow(arm: str, folder: Path, options: argparse.Namespace) -> list[Measured]:
    """Fill one store, and measure it on the way."""
    measured: list[Measured] = []
    with opened(arm, folder) as (store, server):
        filled = 0
        for size in sorted(options.sizes):
            started = time.perf_counter()
            with tqdm(total=size, initial=filled, unit="text", desc=arm) as bar:
                for first in range(filled, size, FILLED_AT_ONCE):
                    texts = range(first, min(first + FILLED_AT_ONCE, size))
                    put(store, texts, options.seed)
                    bar.update(len(texts))
            speed = (size - filled) * len(KINDS) / (time.perf_counter() - started)
            filled = size
            found = {"filled_per_second": [speed], **measure(store, size, options.seed)}
            found["disk_bytes"] = [float(disk_bytes(folder))]
            if server is not None:
                memory = server.client().info("memory")
                found["memory_bytes"] = [float(memory["used_memory"])]
            measured += [Measured(arm, size, metric, values) for metric, values in found.items()]
    return measured


@contextmanager
def opened(arm: str, folder: Path) -> Iterator[tuple[ZStore, Server | None]]:
    """A new store, and the server that it is in, if any."""
    if arm == "folder":
        with ZStore(folder / "store") as store:
            yield store, None
        return
    with (
        running(folder / "redis", "--appendfsync", "everysec") as server,
        ZStore(server.url) as store,
    ):
        yield store, server


def measure(store: ZStore, size: int, seed: int) -> dict[str, list[float]]:
    """All times in milliseconds at one size, and the bytes of all values.

    Raises:
        DataError: the store does not hold what was put into it.
    """
    rng = np.random.default_rng([seed, size])
    asked = [rng.choice(size, min(TOGETHER, size), replace=False) for _ in range(REPEATS + 1)]
    new = [
        range(size + turn * TOGETHER, size + (turn + 1) * TOGETHER) for turn in range(REPEATS + 1)
    ]
    found = {
        "get_64_ms": [timed(lambda n=numbers: get(store, n)) for numbers in asked],
        "put_64_ms": [timed(lambda n=numbers: put(store, n, seed, [CODES])) for numbers in new],
    }
    for numbers in new:
        put(store, numbers, seed, [SENTENCES])
    found["delete_text_ms"] = [
        timed(lambda n=numbers: store.delete([text(n[0])])) for numbers in new
    ]
    store.delete([text(number) for numbers in new for number in numbers])
    found["count_ms"] = [timed(lambda: len(store)) for _ in range(REPEATS + 1)]
    found["size_ms"] = [timed(lambda: store.size_bytes) for _ in range(REPEATS + 1)]
    if len(store) != size * len(KINDS):
        raise DataError(
            f"the store has {len(store)} entries, not {size * len(KINDS)}; this is an error of "
            "ZStore, please report it."
        )
    # The first of each opens what the others find open.
    return {name: times[1:] for name, times in found.items()} | {
        "value_bytes": [float(store.size_bytes)]
    }


def get(store: ZStore, numbers: Sequence[int]) -> None:
    """Look up the codes of texts.

    Raises:
        DataError: one is not there.
    """
    if len(store.get_bytes_many(CODES, [text(number) for number in numbers])) != len(numbers):
        raise DataError("the store has lost entries; this is an error of ZStore, please report it.")


def put(
    store: ZStore, numbers: Sequence[int], seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> None:
    """Put entries of texts."""
    for number, kind in enumerate(kinds):
        length = KINDS[kind]
        data = np.random.default_rng([seed, numbers[0], number]).bytes(len(numbers) * length)
        store.put_bytes_many(
            kind, {text(n): data[i * length : (i + 1) * length] for i, n in enumerate(numbers)}
        )


def text(number: int) -> str:
    """A text, of which the store keeps the hash alone."""
    return f"text {number}"


def timed(act: Callable[[], object]) -> float:
    """Milliseconds by the clock."""
    started = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - started)


def row(each: Measured, seed: int) -> Row:
    """A row of `results.json`; its `chunks` are texts."""
    interval = bootstrap_ci(each.values, seed=seed, statistic=median)
    low, high = np.percentile(each.values, [10, 90])
    return Row(
        "store_size", f"{each.chunks} texts", each.arm, None, 0, each.metric,
        float(np.median(each.values)), interval, len(each.values),
        p10=float(low), p90=float(high), chunks=each.chunks,
    )  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Time, memory and bytes of a store as it grows.")
    parser.add_argument(
        "--sizes", type=counts, default=[10_000, 100_000, 1_000_000], metavar="N,M",
        help="texts, comma-separated; default: 10000,100000,1000000",
    )  # fmt: skip
    parser.add_argument(
        "--arms", type=names, default=list(ARMS), metavar="A,B", help="default: folder,redis"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="folder for the stores; default: a temporary one"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    if unknown := [arm for arm in options.arms if arm not in ARMS]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    if 0 in options.sizes:
        parser.error("--sizes are at least 1")
    if "redis" in options.arms and not is_installed():
        parser.error(
            "redis-server or the package redis is missing; install it, or give --arms folder"
        )
    return options


if __name__ == "__main__":
    run_script(main)
