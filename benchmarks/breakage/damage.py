"""Files of every format, cut short, with one bit turned, or under another's name."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np

from breakage.kills import quiet
from breakage.outcome import Outcome
from breakage.world import World
from ztok_rag import ZSequence, ZtokError
from ztok_rag.codec.model import DEFAULT_CHECKPOINT, read_state
from ztok_rag.index.segments import Row, read_segments, row_id, write_segment

HARMS = ("cut", "bit", "swap")
Generator = np.random.Generator


def damaged(world: World, folder: Path, trials: int, rng: Generator) -> list[Outcome]:
    """An outcome for each format; a third of the trials for each kind of damage."""
    return [
        _index_files(world, folder, trials, rng),
        _database(world, folder, trials, rng),
        _sequences(world, folder, trials, rng),
        _segments(world, folder, trials, rng),
        _checkpoints(folder, trials, rng),
    ]


def harm(path: Path, kind: str, other: bytes, rng: Generator) -> None:
    """Damage one file, which must not be a hard link.

    Args:
        path: the file.
        kind: one of `HARMS`.
        other: what stands in it after a swap.
        rng: chooses the place.
    """
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: int(rng.integers(0, len(data)))]
    elif kind == "bit":
        data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
    else:
        data = bytearray(other)
    path.write_bytes(data)


def _index_files(world: World, folder: Path, trials: int, rng: Generator) -> Outcome:
    """Settings, documents, vectors and the list of them."""
    out = Outcome("damaged index files", "an error that names the index, or right answers")
    ids = frozenset(world.ids[:4])
    _build_two(world, folder)
    files = ["ztok.json", *(f"index/{p.name}" for p in sorted((folder / "one/index").iterdir()))]
    for _ in range(trials):
        name = files[int(rng.integers(len(files)))]
        kind = HARMS[out.faults % 3]
        # The same file of another index, or another file of this one.
        source = ("two", name) if rng.random() < 0.5 else ("one", files[files.index(name) - 1])
        _copied(folder, "one", "tried")
        harm(folder / "tried" / name, kind, folder.joinpath(*source).read_bytes(), rng)
        _ask(out, world, folder / "tried", [ids], f"{name} {kind}")
    return out


def _database(world: World, folder: Path, trials: int, rng: Generator) -> Outcome:
    """The store's database, its log, and its secret."""
    out = Outcome("damaged store files", "right answers; what is lost is compressed again")
    ids = frozenset(world.ids[:4])
    _build_two(world, folder)
    # A log with something in it, as of a process that was killed.
    connection = sqlite3.connect(folder / "one/store/cache.db")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("UPDATE Cache SET store_time = store_time + 1")
    connection.commit()
    _copied(folder, "one", "logged")
    connection.close()
    names = ["cache.db", "cache.db", "cache.db-wal", "secret"]
    for _ in range(trials):
        name = names[int(rng.integers(len(names)))]
        kind = HARMS[out.faults % 3]
        _copied(folder, "logged", "tried")
        other = folder / "two/store" / ("cache.db" if name == "cache.db-wal" else name)
        harm(folder / "tried/store" / name, kind, other.read_bytes(), rng)
        _ask(out, world, folder / "tried", [ids], f"{name} {kind}")
    return out


def _sequences(world: World, folder: Path, trials: int, rng: Generator) -> Outcome:
    """Files of codes."""
    out = Outcome("damaged files of codes", "an error, or what was written")
    code, slots = world.compressor.model.token_code, world.compressor.slots
    made = [own.at(4.0, slots) for own in world.truth.values()]
    file = folder / "text.zt"
    for number in range(trials):
        z, other = made[number % len(made)], made[(number + 1) % len(made)]
        z.save(file)
        kind = HARMS[number % 3]
        swapped = other.to_bytes() if rng.random() < 0.5 else os.urandom(len(other.to_bytes()))
        harm(file, kind, swapped, rng)
        right = {z.to_bytes(), other.to_bytes()} if kind == "swap" else {z.to_bytes()}
        _count(
            out, lambda right=right: ZSequence.load(file, code).to_bytes() in right, f"codes {kind}"
        )
    return out


def _segments(world: World, folder: Path, trials: int, rng: Generator) -> Outcome:
    """Parquet segments of a build on Ray."""
    out = Outcome("damaged Parquet segments", "the rows of whole segments alone")
    right = [Row(row_id("codes", text), own.to_bytes()) for text, own in world.truth.items()]
    half = len(right) // 2
    parts = right[:half], right[half:]
    place = folder / "segments"
    for number in range(trials):
        shutil.rmtree(place, ignore_errors=True)
        one, two = (write_segment(place, part) for part in parts)
        kind = HARMS[number % 3]
        other = two.read_bytes() if rng.random() < 0.5 else os.urandom(one.stat().st_size)
        harm(one, kind, other, rng)
        _count(out, lambda: list(read_segments(place)) == [parts[1]], f"segment {kind}")
    return out


def _checkpoints(folder: Path, trials: int, rng: Generator) -> Outcome:
    """Files of the shipped checkpoint."""
    out = Outcome("damaged checkpoint files", "an error that names the checkpoint")
    names = sorted(path.name for path in DEFAULT_CHECKPOINT.iterdir())
    place = folder / "checkpoint"
    for number in range(trials):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        name = names[int(rng.integers(len(names)))]
        for other in names:  # only the damaged one is copied
            if other == name:
                shutil.copyfile(DEFAULT_CHECKPOINT / other, place / other)
            else:
                (place / other).symlink_to(DEFAULT_CHECKPOINT / other)
        kind = HARMS[number % 3]
        swapped = DEFAULT_CHECKPOINT / names[names.index(name) - 1]
        harm(place / name, kind, swapped.read_bytes(), rng)
        # Whatever was changed, nothing is read from it.
        _count(out, lambda: read_state(place) is None, f"{name} {kind}")
    return out


def _build_two(world: World, folder: Path) -> None:
    for name, ids in (("one", world.ids[:4]), ("two", world.ids[4:8])):
        if not (folder / name).exists():
            with quiet(), world.build(folder / name, ids):
                pass


def _copied(folder: Path, source: str, target: str) -> None:
    shutil.rmtree(folder / target, ignore_errors=True)
    shutil.copytree(folder / source, folder / target)


def _ask(out: Outcome, world: World, path: Path, allowed: list[frozenset[str]], what: str) -> None:
    """Ask a damaged index for all that it holds."""
    out.faults += 1
    try:
        seen = world.check(path, allowed)
    except ZtokError:
        out.refused += 1
        return
    except Exception as error:
        out.wrong.append(f"{what}: {error!r}")
        return
    seen.wrong = [f"{what}: {wrong}" for wrong in seen.wrong]
    out.take(seen)
    out.lose(seen.compressed)


def _count(out: Outcome, is_right: Callable[[], bool], what: str) -> None:
    """One trial of a file that is read whole."""
    out.faults += 1
    try:
        with quiet():
            out.checks += 1
            if not is_right():
                out.wrong.append(what)
    except ZtokError:
        out.refused += 1
    except Exception as error:
        out.wrong.append(f"{what}: {error!r}")
