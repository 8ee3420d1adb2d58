"""Time, memory and bytes of an index as it grows to a million chunks.

    python benchmarks/scale.py --work FOLDER --output DIR

No model runs. Chunks are random words, their vectors are drawn around 1,000 random centres, and
their Z-tokens are random bytes, as many as real ones take. They are added 1,000 at a time. At each
size of 1, 2 and 5 times a power of ten, and at each `--every` chunks, the script measures the last
additions, searches, the process's peak memory since the size before, and the bytes of each part.
From 20,000 chunks on it then calls `optimize()` and searches again. `memory` is the index that is
held in memory, up to `--memory` chunks. A run that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from numpy.typing import NDArray
from tqdm import tqdm

from common import Parser, positive, run_script, write_without_model
from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, bootstrap_ci
from ztok_rag.evaluation.intervals import mean, median
from ztok_rag.index.building import NewFiles
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.contents import Contents
from ztok_rag.index.corpus import Corpus
from ztok_rag.index.folder import LANCE, SQLITE, IndexFolder, Manifest
from ztok_rag.index.large import LargeContents
from ztok_rag.index.vectors import empty_index, read_index
from ztok_rag.storage.store import ZStore

AT_ONCE = 1_000
OF_A_DOCUMENT = 10
DIMENSION = 384
CENTRES = 1_000
SPREAD = 0.7
"""Of a vector around its centre, whose numbers have a standard deviation of 1."""
WORDS = 180
# A chunk of 220 tokens at the bytes per token in `benchmarks/results/latency_bytes/results.json`.
CODE_BYTES, SENTENCE_BYTES = 320, 96
OPTIMIZE_FROM = 20_000
QUESTIONS, EXACT_QUESTIONS = 30, 10
TOP_K = 10
REFINE_FACTOR = 10
"""Of the searches, so that runs can be compared; `scale_probe.py` has the default."""
FINGERPRINT = "0" * 16


@dataclass(frozen=True)
class Measured:
    """One figure.

    Attributes:
        arm: `disk`, or `memory`.
        chunks: in the index.
        metric: what was measured, with its unit.
        values: every measurement.
    """

    arm: str
    chunks: int
    metric: str
    values: list[float]


class Made:
    """Chunks, vectors and questions that depend on the seed and their number alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        rng = np.random.default_rng(seed)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        self._words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(5_000)]
        self._centres = rng.standard_normal((CENTRES, DIMENSION)).astype(np.float32)

    def nodes(self, first: int) -> list[BaseNode]:
        """`AT_ONCE` chunks from number `first` on, with vectors."""
        rng = np.random.default_rng([self._seed, 1, first])
        vectors = self._vectors(rng, AT_ONCE).tolist()
        words = rng.integers(0, len(self._words), (AT_ONCE, WORDS)).tolist()
        nodes: list[BaseNode] = []
        for i, (vector, chosen) in enumerate(zip(vectors, words, strict=True), first):
            name = f"document {i // OF_A_DOCUMENT}.txt"
            metadata = {"file_path": f"texts/{name}", "part": i // OF_A_DOCUMENT % 100}
            node = TextNode(
                id_=hashlib.blake2b(f"{self._seed} {i}".encode(), digest_size=18).hexdigest(),
                text=" ".join(self._words[word] for word in chosen),
                metadata=metadata,
            )
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(
                node_id=name, metadata=metadata, hash=hashlib.sha256(name.encode()).hexdigest()
            )
            node.embedding = vector
            nodes.append(node)
        return nodes

    def questions(self, count: int) -> list[list[float]]:
        """Vectors of questions."""
        vectors: list[list[float]] = self._vectors(
            np.random.default_rng([self._seed, 2]), count
        ).tolist()
        return vectors

    def _vectors(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        around = self._centres[rng.integers(0, CENTRES, count)]
        spread = SPREAD * rng.standard_normal((count, DIMENSION), dtype=np.float32)
        vectors: NDArray[np.float32] = around + spread
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Grow the indexes, and write the results."""
    options = parse(arguments)
    made = Made(options.seed)
    measured: list[Measured] = []
    for arm, limit in {"memory": options.memory, "disk": options.chunks}.items():
        measured += grow(arm, limit, made, options)
    rows = [row(each, options.seed) for each in measured]
    note = (
        f"Chunks of {WORDS} random words, {DIMENSION} numbers in a vector, added {AT_ONCE} at a "
        f"time, {OF_A_DOCUMENT} to a document; no model runs. Scores are medians, but recall and "
        "bytes; peak_rss is of the whole process since the size before, exact searches and "
        f"optimize() included, which ran at each size from {OPTIMIZE_FROM} chunks on. Searches "
        f"have refine_factor={REFINE_FACTOR}. Other work ran on the machine."
    )
    write_without_model(
        options.output,
        rows,
        seed=options.seed,
        benchmark="scale",
        note=note,
        threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    )


def grow(arm: str, limit: int, made: Made, options: argparse.Namespace) -> list[Measured]:
    """Grow one index, and measure it on the way."""
    folder = options.work / arm
    log = options.work / f"{arm}.json"
    measured = [Measured(**each) for each in json.loads(log.read_text())] if log.exists() else []
    corpus = open_corpus(arm, folder)
    sizes = [size for size in chosen_sizes(options.every) if size <= limit]
    done = max((each.chunks for each in measured), default=0)
    times: list[tuple[float, float]] = []
    reset_peak()
    with tqdm(total=limit, initial=corpus.chunk_count, unit="chunk", desc=arm) as bar:
        while corpus.chunk_count < limit:
            first = corpus.chunk_count
            times.append(insert(corpus, made, first))
            bar.update(AT_ONCE)
            if (size := first + AT_ONCE) not in sizes or size <= done:
                continue
            measured += measure(arm, corpus, folder, size, times, made)
            write_atomic(log, json.dumps([asdict(each) for each in measured]).encode())
            times.clear()
            reset_peak()
    return [each for each in measured if each.chunks <= limit]


def open_corpus(arm: str, path: Path) -> Corpus:
    """The index in a folder, or a new one."""
    folder = IndexFolder(path)
    is_new = not folder.exists()
    large = arm == "disk"
    manifest = Manifest(
        rate=4.0, chunk_size=256, chunk_overlap=0, fingerprint=FINGERPRINT, slots=16,
        embed_model="random", embed_dimension=DIMENSION,
        vector_store=LANCE if large else "", docstore=SQLITE if large else "",
    )  # fmt: skip
    if is_new:
        folder.claim()
    store = ZStore(folder.store)
    if not is_new:
        manifest = folder.read()
        if large:
            return LargeContents(folder, manifest, store)
        return Contents(folder, manifest, read_index(folder, None), store)
    if not large:
        return Contents(folder, manifest, empty_index(DIMENSION, None), store)
    files = NewFiles(folder, manifest, store, None, None)
    with files.making() as contents:
        return files.adopt(contents)


def insert(corpus: Corpus, made: Made, first: int) -> tuple[float, float]:
    """Add chunks; milliseconds for their Z-tokens, and for text and vectors."""
    nodes = made.nodes(first)
    hashes = {node.ref_doc_id or "": str(node.ref_doc_id) for node in nodes}
    data = np.random.default_rng(first).bytes(AT_ONCE * (CODE_BYTES + SENTENCE_BYTES))
    started = time.perf_counter()
    for i, node in enumerate(nodes):
        own = data[i * (CODE_BYTES + SENTENCE_BYTES) :]
        text = chunk_text(node)
        corpus.store.put_bytes(f"text-{FINGERPRINT}", text, own[:CODE_BYTES])
        corpus.store.put_bytes("sentences", text, own[CODE_BYTES : CODE_BYTES + SENTENCE_BYTES])
    between = time.perf_counter()
    corpus.change(nodes, hashes, ())
    return 1e3 * (between - started), 1e3 * (time.perf_counter() - between)


def measure(
    arm: str,
    corpus: Corpus,
    folder: Path,
    size: int,
    times: Sequence[tuple[float, float]],
    made: Made,
) -> list[Measured]:
    """All figures of an index at one size."""
    last = times[-10:]
    found = {
        "insert_z_tokens_ms": [z_tokens for z_tokens, _ in last],
        "insert_ms": [index for _, index in last],
    }
    questions = made.questions(QUESTIONS)
    if arm == "memory":
        found["query_ms"], _ = search(corpus, questions)
    else:
        found["query_ms"], _ = search(corpus, questions, refine_factor=REFINE_FACTOR)
        found["query_exact_ms"], exact = search(corpus, questions[:EXACT_QUESTIONS], exact=True)
        if size >= OPTIMIZE_FROM:
            started = time.perf_counter()
            corpus.optimize()
            found["optimize_s"] = [time.perf_counter() - started]
            found["query_optimized_ms"], best = search(
                corpus, questions, refine_factor=REFINE_FACTOR
            )
            pairs = zip(exact, best, strict=False)
            found["recall_at_10"] = [100 * len(a & b) / TOP_K for a, b in pairs]
    found["peak_rss_bytes"] = [float(peak_bytes())]
    for name, path in {
        "catalog_bytes": folder / "index" / "catalog.db",
        "vector_bytes": folder / "index" / "vectors",
        "index_bytes": folder / "index",
        "z_token_bytes": folder / "store",
    }.items():
        if path.exists():
            found[name] = [float(disk_bytes(path))]
    return [Measured(arm, size, metric, values) for metric, values in found.items()]


def search(
    corpus: Corpus, questions: Sequence[list[float]], **arguments: object
) -> tuple[list[float], list[set[str]]]:
    """Milliseconds of each search after a first one, and what was found."""
    times, found = [], []
    for number, question in enumerate([questions[0], *questions]):
        query = VectorStoreQuery(query_embedding=question, similarity_top_k=TOP_K)
        started = time.perf_counter()
        nodes = corpus.search(query, **arguments)
        if number:
            times.append(1e3 * (time.perf_counter() - started))
            found.append({item.node_id for item in nodes})
    return times, found


def chosen_sizes(every: int) -> Iterator[int]:
    """The sizes to measure: 1, 2 and 5 times the powers of ten, and multiples of `every`."""
    few = {factor * 10**power for power in range(3, 8) for factor in (1, 2, 5)}
    yield from sorted(few | set(range(every, max(few) + 1, every)))


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def reset_peak() -> None:
    """Forget the process's peak memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise DataError(
            f"peak memory is measured on Linux only ({error}); run it there."
        ) from error


def peak_bytes() -> int:
    """Most memory that the process has held since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def row(each: Measured, seed: int, benchmark: str = "scale") -> Row:
    """A row of `results.json`."""
    middle = mean if each.metric.endswith("recall_at_10") else median
    score = float(middle(np.array([each.values]))[0])
    interval = bootstrap_ci(each.values, seed=seed, statistic=middle)
    low, high = np.percentile(each.values, [10, 90])
    return Row(
        benchmark, f"{each.chunks} chunks", each.arm, None, TOP_K, each.metric, score,
        interval, len(each.values), p10=float(low), p90=float(high), chunks=each.chunks,
    )  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Time, memory and bytes of an index as it grows.")
    parser.add_argument("--chunks", type=thousands, default=1_000_000, help="default: 1000000")
    parser.add_argument(
        "--memory", type=thousands, default=10_000, help="of the index in memory; default: 10000"
    )
    parser.add_argument(
        "--every", type=thousands, default=100_000, help="chunks between sizes; default: 100000"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR",
        help="where the indexes are made; about 5 kB a chunk",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.work).free
    if free < 6_000 * options.chunks:
        parser.error(f"{options.work} has {free / 2**30:.1f} GiB free; name a folder with more")
    return options


def thousands(text: str) -> int:
    """A number of chunks, as an argument type."""
    if (number := positive(text)) % AT_ONCE:
        raise argparse.ArgumentTypeError(f"chunks are added {AT_ONCE} at a time")
    return number


if __name__ == "__main__":
    run_script(main)
