"""A disk that is full at random moments of adding, deleting and compacting."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from breakage.kills import quiet
from breakage.outcome import Outcome
from breakage.processes import DONE, FAILED, REFUSED, ended, forked
from breakage.world import RATES, World

_TMPFS_BYTES = 2 * 2**20


def full_disk(world: World, folder: Path, trials: int, rng: np.random.Generator) -> list[Outcome]:
    """Each way in which a disk is full, where this machine can make it.

    A file system of limited size needs the right to mount one; it is left out without.
    """
    start = frozenset(world.ids[:4])
    with quiet(), world.build(folder / "whole", sorted(start)):
        pass
    found = [
        _fill(_limited, "files cannot grow (RLIMIT_FSIZE)", world, folder, trials, rng),
        _fill(_pages, "the database cannot grow (max_page_count)", world, folder, trials, rng),
    ]
    with mounted(folder / "tmpfs") as disk:
        if disk is not None:
            found.append(_fill(_tight, "full tmpfs", world, folder, trials, rng, disk))
    return found


Limit = Callable[[Any, Path, np.random.Generator], None]


def _fill(
    limit: Limit,
    kind: str,
    world: World,
    folder: Path,
    trials: int,
    rng: np.random.Generator,
    disk: Path | None = None,
) -> Outcome:
    out, log = Outcome(kind, "the index before the change, or after it"), folder / "log"
    path = (disk or folder) / "index"
    state = frozenset(world.ids[:4])
    others = sorted(world.ids[4:])
    shutil.copytree(folder / "whole", path)
    while out.faults < trials:
        spare = others[out.faults % len(others)]
        does = (
            "compact" if out.faults % 5 == 4 else "delete" if spare in state else "add"
        )  # fmt: skip
        seed = int(rng.integers(2**31))

        def action(does: str = does, spare: str = spare, seed: int = seed) -> None:
            with quiet(), world.load(path) as index:
                limit(index, path, np.random.default_rng(seed))
                if does == "add":
                    index.insert(world.documents[spare])
                elif does == "delete":
                    index.delete_ref_doc(spare)
                else:
                    index.recompress(rate=RATES[seed % 2])

        status = ended(forked(action, log))
        (path.parent / "filler").unlink(missing_ok=True)
        out.faults += 1
        out.refused += status == REFUSED
        if status not in (DONE, REFUSED):
            out.wrong.append(f"{does} ended with {status}: {_last(log, status)}")
        after = {"add": state | {spare}, "delete": state - {spare}}.get(does, state)
        seen = world.check(path, [after] if status == DONE else [state, after])
        out.take(seen)
        out.lose(seen.compressed)
        state = seen.documents
    shutil.rmtree(path)
    return out


def _last(log: Path, status: int) -> str:
    return log.read_text()[-1500:] if status == FAILED and log.exists() else ""


def _limited(index: Any, path: Path, rng: np.random.Generator) -> None:
    """No file grows beyond a random size."""
    largest = max(file.stat().st_size for file in path.rglob("*") if file.is_file())
    size = int(rng.integers(0, largest))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _pages(index: Any, path: Path, rng: np.random.Generator) -> None:
    """The store's database grows by no page, or by a few."""
    cache = index.store._cache
    ((pages,),) = cache._sql("PRAGMA page_count").fetchall()
    cache._sql(f"PRAGMA max_page_count = {pages + int(rng.integers(0, 3))}").fetchall()


def _tight(index: Any, path: Path, rng: np.random.Generator) -> None:
    """The file system has little room left."""
    state = os.statvfs(path)
    room = state.f_bavail * state.f_frsize
    with (path.parent / "filler").open("wb") as file:
        file.write(bytes(max(0, room - int(rng.integers(0, 200_000)))))


@contextmanager
def mounted(folder: Path) -> Iterator[Path | None]:
    """A small tmpfs; `None` where it cannot be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    try:
        yield folder if done else None
    finally:
        if done:
            subprocess.run(["umount", str(folder)], check=True)
