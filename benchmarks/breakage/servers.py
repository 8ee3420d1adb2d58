"""A store in Redis whose real server is stopped, slow, full or killed, or whose clients are."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from breakage.kills import KILLED, quiet
from breakage.outcome import Outcome
from breakage.processes import ended, forked, killed, seconds_of
from breakage.redis_server import Server, is_installed, running
from breakage.world import World
from ztok_rag import ZStore
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.errors import DataError
from ztok_rag.index.chunks import chunk_text

Generator = np.random.Generator

_TEXTS = 12  # written by each client that is killed, one at a time
_LATEST = 0.03  # seconds after which a fault comes at the latest
_MORE = 3  # texts written after it
_DELETED = 2  # of a trial's texts, when all is well again
_ASKED = 2  # chunks of an index that are asked for in each trial
_TIMEOUT = 0.05  # seconds that a client waits for a slow server
_PAUSES = (0.15, 0.7)  # seconds that a server is slow
_ALL = "right answers meanwhile, and then every entry"
_BUT_ONE = "every entry but the one in flight"


def redis(world: World, folder: Path, trials: int, rng: Generator) -> list[Outcome]:
    """Each fault of a server, and of its clients; one server with an append-only file for all.

    Raises:
        DataError: there is no redis-server.
    """
    if not is_installed():
        raise DataError(
            "faults of Redis need redis-server and `pip install ztok-rag[redis]`; install both, or "
            "choose other --kinds."
        )
    with running(folder / "redis") as server:
        scene = Scene(world, folder, server, rng)
        return [
            scene.go_on("Redis stopped", trials, server.stop),
            scene.go_on("Redis restarted (append-only file)", trials, scene.restart),
            scene.go_on("Redis slow (CLIENT PAUSE)", trials, scene.pause, seconds=_TIMEOUT),
            scene.go_on("Redis out of memory (noeviction)", trials, scene.fill),
            scene.server_killed(trials),
            scene.clients_killed(trials),
        ]


class Scene:
    """A server with the entries of an index, and with all that trials have written.

    Attributes:
        there: right answer of each text that must be in the store.
    """

    def __init__(self, world: World, folder: Path, server: Server, rng: Generator) -> None:
        self.there: dict[str, CompressedText] = {}
        self._world, self._folder, self._server, self._rng = world, folder, server, rng
        self._ids = frozenset(world.ids[:2])
        self._deleted: list[str] = []
        self._number = 0
        with quiet(), world.build(folder / "index", sorted(self._ids), server.url) as index:
            self._secret = index.store.secret
            for i in sorted(self._ids):
                texts = [chunk_text(node) for node in world.chunks[i]]
                assert len(index.store.get_many(world.compressor, texts)) == len(texts)

    # -- faults

    def restart(self) -> None:
        """Stop the server and start it."""
        self._server.stop()
        self._server.start()

    def pause(self) -> None:
        """Have the server answer nobody for a time, which is longer than clients wait."""
        self._server.client().client_pause(int(1000 * self._rng.uniform(*_PAUSES)))

    def fill(self) -> None:
        """Leave the server less memory than it uses."""
        self._server.client().config_set("maxmemory", "1mb")

    # -- kinds

    def go_on(
        self, kind: str, trials: int, fault: Callable[[], None], seconds: float | None = None
    ) -> Outcome:
        """A client works on through a fault; later all that it wrote must be there.

        Args:
            kind: of fault, in words.
            trials: faults made.
            fault: makes one.
            seconds: that the client waits for an answer.
        """
        out = Outcome(kind, _ALL)
        url = self._server.url
        if seconds is not None:
            url += f"?socket_timeout={seconds}"
        while out.faults < trials:
            own: dict[str, CompressedText] = {}
            with (
                warnings.catch_warnings(record=True) as caught,
                self._world.load(self._folder / "index", url) as index,
            ):
                warnings.simplefilter("always")
                for text, right in self._until(fault):
                    own[text] = right
                    self._resolve(out, index.store, {text: right, **self._earlier()})
                # The index is asked while the fault lasts.
                out.take(self._world.check_index(index, [self._ids], most=_ASKED))
                self._mend()
            out.faults += 1
            out.refused += any("the store" in str(w.message) for w in caught)
            self._expect(out, own)
        self._check_all(out)
        return out

    def server_killed(self, trials: int) -> Outcome:
        """A server is killed, and the client that writes to it ends without another word."""
        out = Outcome("kill -9 of the Redis server during writes", _BUT_ONE)
        while out.faults < trials:
            own: dict[str, CompressedText] = {}
            store = ZStore(self._server.url)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    for text, right in self._until(lambda: self._server.stop(kill=True)):
                        own[text] = right
                        store.put(text, right)
                except UserWarning:  # it is not written
                    out.refused += 1
            out.faults += 1
            self._mend()
            self._expect(out, own)
        self._check_all(out)
        return out

    def clients_killed(self, trials: int) -> Outcome:
        """Two clients that write the same texts are killed."""
        out, log = Outcome("kill -9 of two clients of Redis during writes", _BUT_ONE), "log"
        notes = [self._folder / "first", self._folder / "second"]
        usual = 0.0
        while out.faults < trials:
            own = dict(self._text() for _ in range(_TEXTS))

            def write(note: Path, own: dict[str, CompressedText] = own) -> None:
                store = ZStore(self._server.url)
                with note.open("wb", buffering=0) as begun:
                    for text, right in own.items():
                        begun.write(b".")
                        store.put(text, right)

            for note in notes:
                note.write_bytes(b"")
            if not usual:
                usual = seconds_of(lambda: write(notes[0]), self._folder / log)
            else:
                other = forked(lambda: write(notes[1]), self._folder / log)
                delay = float(self._rng.uniform(0, usual))
                status = killed(lambda: write(notes[0]), delay, self._folder / log)
                os.kill(other, signal.SIGKILL)
                out.faults += (status == KILLED) + (ended(other) == KILLED)
            begun = max(note.stat().st_size for note in notes)
            self._expect(out, dict(list(own.items())[:begun]), own)
        self._check_all(out)
        return out

    # -- what must be there

    def _text(self) -> tuple[str, CompressedText]:
        """A new text with its right answer."""
        bases = list(self._world.truth)
        self._number += 1
        text = f"{bases[self._number % len(bases)]} Item {self._number}."
        return text, self._world.compressor.compress_all_rates([text])[0]

    def _until(self, fault: Callable[[], None]) -> Iterator[tuple[str, CompressedText]]:
        """New texts until a fault has been made at a random moment, and some more."""
        delay = float(self._rng.uniform(0, _LATEST))

        def make() -> None:
            time.sleep(delay)
            fault()

        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(make)
            while not made.done():
                yield self._text()
            made.result()
            for _ in range(_MORE):
                yield self._text()

    def _earlier(self) -> dict[str, CompressedText]:
        """A text of one of the last trials."""
        texts = list(self.there)[-_TEXTS:]
        chosen = texts[int(self._rng.integers(len(texts)))] if texts else None
        return {} if chosen is None else {chosen: self.there[chosen]}

    def _resolve(self, out: Outcome, store: ZStore, right: dict[str, CompressedText]) -> None:
        found, _ = store.resolve(self._world.compressor, list(right))
        self._compare(out, dict(zip(right, found, strict=True)), right)

    def _compare(
        self,
        out: Outcome,
        found: dict[str, CompressedText],
        right: dict[str, CompressedText],
    ) -> None:
        for text, answer in found.items():
            out.checks += 1
            if answer.to_bytes() != right[text].to_bytes():
                out.wrong.append(f"other Z-tokens of {text[-40:]!r}")

    def _mend(self) -> None:
        """Have the server run, with memory, and wait until it answers."""
        if self._server.process is None:
            self._server.start()
        client = self._server.client()
        client.ping()  # waits for a pause to end
        client.config_set("maxmemory", "0")

    def _expect(
        self,
        out: Outcome,
        expected: dict[str, CompressedText],
        own: dict[str, CompressedText] | None = None,
    ) -> None:
        """Ask a new client for what a trial wrote; then delete some of it.

        Args:
            out: gets what is lost or wrong.
            expected: must be there.
            own: may be there; `None` is no more than what must.
        """
        own = own or expected
        with quiet(), ZStore(self._server.url) as store:
            if store.secret != self._secret:
                out.wrong.append("the store has another secret")
            found = store.get_many(self._world.compressor, list(own))
            self._compare(out, found, own)
            out.lose(len(expected.keys() - found.keys()))
            gone = list(found)[:_DELETED]
            store.delete(gone)
        self._deleted += gone
        self.there |= {text: own[text] for text in found if text not in gone}

    def _check_all(self, out: Outcome) -> None:
        """Ask for all that trials of every kind wrote and deleted, and for the whole index."""
        with quiet(), ZStore(self._server.url) as store:
            found = store.get_many(self._world.compressor, list(self.there))
            self._compare(out, found, self.there)
            out.lose(len(self.there.keys() - found.keys()))
            back = store.get_many(self._world.compressor, self._deleted)
            out.wrong += [f"deleted text {text[-40:]!r} is back" for text in back]
            values = sum(len(own.to_bytes()) for own in found.values())
            chunks = [chunk_text(node) for i in self._ids for node in self._world.chunks[i]]
            values += store.size_of(chunks)
            if store.size_bytes != values:
                out.wrong.append(f"the store counts {store.size_bytes} bytes, and has {values}")
        with quiet(), self._world.load(self._folder / "index", self._server.url) as index:
            seen = self._world.check_index(index, [self._ids])
        out.take(seen)
        out.lose(seen.compressed)
