"""`kill -9` at random moments, with other processes on the same index."""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import MetadataMode

from breakage.outcome import Outcome
from breakage.processes import Beside, ended, forked, killed, seconds_of
from breakage.world import RATES, World
from ztok_rag import ZStore, ZtokError
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.segments import Row, read_segments, row_id, write_segment

KILLED = -9
Generator = np.random.Generator


def ingest(world: World, folder: Path, trials: int, rng: Generator) -> Outcome:
    """Two processes build one index; both are killed, and a third one builds again."""
    out, log = Outcome("kill -9 of two builds", "no whole index, or the whole one"), folder / "log"
    ids = world.ids[:3]
    whole = frozenset(ids)
    texts = [chunk_text(node) for i in ids for node in world.chunks[i]]
    path = folder / "index"

    def action() -> None:
        world.build(path, ids).close()

    seconds = seconds_of(action, log)
    while out.faults < trials:
        shutil.rmtree(path, ignore_errors=True)
        other = forked(action, log)
        status = killed(action, float(rng.uniform(0, seconds)), log)
        os.kill(other, signal.SIGKILL)
        out.faults += (status == KILLED) + (ended(other) == KILLED)
        if (path / "ztok.json").exists() or (path / ".committed").exists():
            out.take(world.check(path, [whole]))
        held = entries(path, world, texts)
        with quiet(), world.build(path, ids) as index:
            # What was compressed before the kill is not compressed again.
            out.lose(index.store.stats.compressed - (len(set(texts)) - held))
        out.take(world.check(path, [whole]))
    return out


def changes(world: World, folder: Path, trials: int, rng: Generator) -> list[Outcome]:
    """Adding, deleting, compacting and asking, each killed, while another process asks."""
    path, log = folder / "index", folder / "log"
    state = frozenset(world.ids[:4])
    with world.build(path, sorted(state)):
        pass
    add = Outcome("kill -9 while a document is added", "without the document, or with it")
    delete = Outcome("kill -9 while a document is deleted", "with the document, or without it")
    compact = Outcome("kill -9 of a compaction", "all documents")
    ask = Outcome("kill -9 of a query", "all documents")
    beside = Beside(lambda: look(world, path), log)
    seconds: dict[str, float] = {}
    others = sorted(world.ids[4:])
    turn = 0
    while min(out.faults for out in (add, delete, compact, ask)) < trials:
        turn += 1
        spare = others[turn % len(others)]
        if spare in state:
            _one(delete, world, path, log, rng, seconds, state, state - {spare}, _delete(spare))
        else:
            _one(add, world, path, log, rng, seconds, state, state | {spare}, _add(spare))
        state = world.check(path).documents
        if compact.faults < trials:
            rate = RATES[turn % 2]
            _one(compact, world, path, log, rng, seconds, state, state, _compact(rate))
        if ask.faults < trials:
            node = world.chunks[sorted(state)[turn % len(state)]][0]
            with quiet(), ZStore(path / "store") as store:
                store.delete([chunk_text(node)])
            _one(ask, world, path, log, rng, seconds, state, state, _ask(node))
    found = beside.stop()
    outcomes = [add, delete, compact, ask]
    for out in outcomes:
        out.checks += found["checks"] // len(outcomes)
        out.wrong += found["wrong"]
    return outcomes


def look(world: World, path: Path) -> dict[str, Any]:
    """One look of a process beside: whether whole documents, and right answers, are there."""
    time.sleep(0.1)  # it is to be there, and not to take all of a core
    try:
        seen = world.check(path, most=6)
    except ZtokError as error:  # such as an index that is being replaced at this moment
        return {"checks": 0, "wrong": [], "refused": [str(error)][:1]}
    return {"checks": seen.checks, "wrong": seen.wrong, "refused": []}


def segments(world: World, folder: Path, trials: int, rng: Generator) -> Outcome:
    """A worker that writes segments is killed; those that are there are whole."""
    out, log = Outcome("kill -9 of a worker that writes segments", "whole segments"), folder / "log"
    texts = list(world.truth)
    right = {row_id("codes", text): own.to_bytes() for text, own in world.truth.items()}

    def write() -> None:
        for start in range(0, len(texts), 3):
            part = texts[start : start + 3]
            rows = [Row(row_id("codes", t), world.truth[t].to_bytes()) for t in part]
            write_segment(folder / "segments", rows)

    seconds = seconds_of(write, log)
    while out.faults < trials:
        shutil.rmtree(folder / "segments", ignore_errors=True)
        out.faults += killed(write, float(rng.uniform(0, seconds)), log) == KILLED
        for rows in read_segments(folder / "segments"):
            out.checks += len(rows)
            out.wrong += [row.id.hex() for row in rows if right.get(row.id) != row.codes]
    return out


def entries(path: Path, world: World, texts: list[str]) -> int:
    """How many of the texts a store holds."""
    if not (path / "store").is_dir():
        return 0
    with quiet(), ZStore(path / "store") as store:
        mark = world.compressor.fingerprint
        return sum(store.length(mark, text) is not None for text in set(texts))


class quiet(warnings.catch_warnings):
    """Warnings are not shown."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
        warnings.simplefilter("ignore")


Change = Callable[[Any], object]


def _add(name: str) -> Callable[[World], Change]:
    return lambda world: lambda index: index.insert(world.documents[name])


def _delete(name: str) -> Callable[[World], Change]:
    return lambda world: lambda index: index.delete_ref_doc(name)


def _compact(rate: float) -> Callable[[World], Change]:
    return lambda world: lambda index: index.recompress(rate=rate)


def _ask(node: Any) -> Callable[[World], Change]:
    def ask(index: Any) -> None:
        text = node.get_content(metadata_mode=MetadataMode.EMBED)
        found = index.as_retriever(similarity_top_k=1).retrieve(text)
        index.postprocessor(query_aware=False).postprocess_nodes(found)

    return lambda world: ask


def _one(
    out: Outcome,
    world: World,
    path: Path,
    log: Path,
    rng: Generator,
    seconds: dict[str, float],
    before: frozenset[str],
    after: frozenset[str],
    change: Callable[[World], Change],
) -> None:
    """Kill one change; then the index must be the one before it, or the one after it."""

    def action() -> None:
        with quiet(), world.load(path) as index:
            change(world)(index)

    if out.kind not in seconds:  # how long it takes, by one that is not killed
        seconds[out.kind] = seconds_of(action, log)
    else:
        out.faults += killed(action, float(rng.uniform(0, seconds[out.kind])), log) == KILLED
    seen = world.check(path, [before, after])
    out.take(seen)
    out.lose(seen.compressed)
