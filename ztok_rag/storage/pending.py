"""What a store could not write, kept in memory until it can."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ztok_rag.forks import ForkSafeLock
from ztok_rag.storage.backends import Backend, split_key

PENDING_BYTES = 64 * 2**20
"""Most bytes of values that wait; those that came first are dropped, and compressed again."""


class Pending:
    """Entries and pins that wait to be written.

    Attributes:
        lock: held while they are written, and by whoever deletes entries meanwhile.
    """

    def __init__(self) -> None:
        self.lock = ForkSafeLock()
        self._entries: dict[str, tuple[bytes, bool]] = {}
        self._pins: list[tuple[str, tuple[str, ...]]] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._entries or self._pins)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def add(self, entries: Mapping[str, bytes], *, replace: bool) -> None:
        """Keep entries, to be written as by `Backend.put_many`."""
        with self.lock:
            for key, value in entries.items():
                if not replace and key in self._entries:
                    continue
                self._drop(key)
                self._entries[key] = value, replace
                self._bytes += len(value)
            while self._bytes > PENDING_BYTES:
                self._drop(next(iter(self._entries)))

    def add_pins(self, owner: str, hashes: Iterable[str]) -> None:
        """Keep pins, to be written as by `Backend.pin`."""
        with self.lock:
            self._pins.append((owner, tuple(hashes)))

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those keys that wait."""
        with self.lock:
            return {key: self._entries[key][0] for key in keys if key in self._entries}

    def forget(self, hashes: Collection[str]) -> None:
        """Drop the entries and the pins of texts."""
        with self.lock:
            for key in [key for key in self._entries if split_key(key)[1] in hashes]:
                self._drop(key)
            self._pins = [
                (owner, tuple(content for content in pinned if content not in hashes))
                for owner, pinned in self._pins
            ]

    def clear(self) -> None:
        """Drop all."""
        with self.lock:
            self._entries, self._pins, self._bytes = {}, [], 0

    def write(self, backend: Backend) -> None:
        """Write what waits.

        Raises:
            BackendError: it cannot be written, and waits on.
        """
        with self.lock:
            for replace in (False, True):
                entries = {k: v for k, (v, flag) in self._entries.items() if flag is replace}
                if entries:
                    backend.put_many(entries, replace=replace)
            for owner, hashes in self._pins:
                backend.pin(owner, hashes)
            self.clear()

    def _drop(self, key: str) -> None:
        value, _ = self._entries.pop(key, (b"", False))
        self._bytes -= len(value)
