"""Clocks that go back, and processes that are forked from a running one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from breakage.kills import quiet
from breakage.outcome import Outcome
from breakage.processes import DONE, ended, forked
from breakage.world import World
from ztok_rag.index.chunks import chunk_text

_YEAR = 366 * 24 * 3600.0
_AT_ONCE = 4


def clock(world: World, folder: Path, trials: int, rng: np.random.Generator) -> Outcome:
    """A change by a process whose clock was set back by up to ten years, and reads by another."""
    out, log = Outcome("clock set back", "the index after the change"), folder / "log"
    path = folder / "index"
    state = frozenset(world.ids[:4])
    with quiet(), world.build(path, sorted(state)):
        pass
    others = sorted(world.ids[4:])
    for number in range(trials):
        spare = others[number % len(others)]
        back = float(rng.uniform(0, 10 * _YEAR))
        after = state ^ {spare}
        is_held = spare in state

        def action(
            spare: str = spare,
            back: float = back,
            after: frozenset[str] = after,
            is_held: bool = is_held,
        ) -> None:
            real = time.time
            time.time = lambda: real() - back
            with quiet(), world.load(path) as index:
                if is_held:
                    index.delete_ref_doc(spare)
                else:
                    index.insert(world.documents[spare])
                wrong = world.check_index(index, [after]).wrong
            assert not wrong, wrong

        out.faults += 1
        if (status := ended(forked(action, log))) != DONE:
            out.wrong.append(f"it ended with {status}: {log.read_text()[-1500:]}")
        seen = world.check(path, [after])
        out.take(seen)
        out.lose(seen.compressed)
        state = seen.documents
    return out


def forks(world: World, folder: Path, trials: int, rng: np.random.Generator) -> Outcome:
    """Children of a process that has answered already ask and compress with its objects."""
    out, log = Outcome("fork after warm-up", "right answers in every process"), folder / "log"
    ids = frozenset(world.ids[:4])
    with quiet(), world.build(folder / "index", sorted(ids)) as index:
        out.take(world.check_index(index, [ids]))
        spare = [chunk_text(node) for i in world.ids[4:] for node in world.chunks[i]]

        def action(text: str) -> None:
            wrong = world.check_index(index, [ids], most=6).wrong
            assert not wrong, wrong
            found, _ = index.store.resolve(world.compressor, [text])
            assert found == [world.truth[text]]

        while out.faults < trials:
            texts = [spare[int(rng.integers(len(spare)))] for _ in range(_AT_ONCE)]
            pids = [forked(lambda text=text: action(text), log) for text in texts]  # type: ignore[misc]
            out.take(world.check_index(index, [ids], most=6))
            for pid in pids:
                out.faults += 1
                out.checks += 7
                if (status := ended(pid)) != DONE:
                    out.wrong.append(f"it ended with {status}: {log.read_text()[-1500:]}")
    return out
