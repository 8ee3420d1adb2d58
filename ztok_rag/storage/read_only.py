"""The backend of a folder that cannot be written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ztok_rag.forks import ForkSafeLock
from ztok_rag.storage.backends import BackendError, ReadOnlyError, split_key
from ztok_rag.storage.disk import BytesDisk
from ztok_rag.storage.schema import SIZE, find_kinds


class ReadOnlyBackend:
    """The entries of an `EmbeddedBackend`; its database may be one of an earlier version."""

    is_read_only = True

    def __init__(self, directory: str) -> None:
        """Open the database.

        Raises:
            sqlite3.Error: it is not a database of a store.
        """
        self._disk = BytesDisk(directory)
        self._lock = ForkSafeLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0  # a connection is of no use after a fork
        self._path = Path(directory, "cache.db").as_uri()
        self._rows("SELECT COUNT(*) FROM Cache")

    def __len__(self) -> int:
        return self._number("SELECT COUNT(*) FROM Cache")

    def value_bytes(self) -> int:
        return self._number(f"SELECT COALESCE(SUM({SIZE}), 0) FROM Cache")

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes | ValueError]:
        found: dict[str, bytes | ValueError] = {}
        select = "SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1"
        for key in keys:
            try:
                for mode, filename, value in self._rows(select, key):
                    found[key] = self._disk.fetch(mode, filename, value, False)
            except (ValueError, sqlite3.Error) as error:
                found[key] = ValueError(str(error))
        return found

    def kinds(self) -> list[str]:
        return find_kinds(self._tried)

    def content_bytes(self, hashes: Iterable[str]) -> int:
        # Its database may have no index of hashes.
        wanted = set(hashes)
        select = f"SELECT key, {SIZE} FROM Cache WHERE key > ? ORDER BY key LIMIT 1000"
        total, after = 0, ""
        while rows := self._tried(select, after):
            total += sum(size for key, size in rows if split_key(key)[1] in wanted)
            after = rows[-1][0]
        return total

    def pinned(self, owner: str) -> Iterator[list[str]]:
        yield from ()

    def put_many(self, entries: Mapping[str, bytes], *, replace: bool = False) -> dict[str, bytes]:
        raise ReadOnlyError("its folder is read-only")

    def delete_many(self, keys: Sequence[str]) -> int:
        raise ReadOnlyError("its folder is read-only")

    def delete_contents(self, hashes: Iterable[str], *, owner: str | None = None) -> int:
        raise ReadOnlyError("its folder is read-only")

    def delete_kinds(self, kinds: Iterable[str]) -> int:
        raise ReadOnlyError("its folder is read-only")

    def delete_others(self, keep: Collection[str]) -> int:
        raise ReadOnlyError("its folder is read-only")

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        raise ReadOnlyError("its folder is read-only")

    def unpin(self, owner: str, hashes: Iterable[str]) -> None:
        raise ReadOnlyError("its folder is read-only")

    def empty_log(self) -> bool:
        return True

    def end_pause(self) -> None:
        pass  # there is none

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _number(self, query: str) -> int:
        ((number,),) = self._tried(query)
        return int(number)

    def _tried(self, query: str, *values: object) -> list[Any]:
        try:
            return self._rows(query, *values)
        except sqlite3.Error as error:
            raise BackendError(str(error)) from error

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            if self._connection is None or self._process != os.getpid():
                self._connection, self._process = self._connect(), os.getpid()
            return self._connection.execute(query, values).fetchall()

    def _connect(self) -> sqlite3.Connection:
        """Connect with locks if they can be made, so that others may write, and else without."""
        for mode in ("mode=ro", "immutable=1"):
            connection = sqlite3.connect(
                f"{self._path}?{mode}", uri=True, check_same_thread=False, timeout=60
            )
            try:
                connection.execute("SELECT COUNT(*) FROM Cache").fetchall()
                return connection
            except sqlite3.OperationalError as error:
                connection.close()
                failed = error
        raise failed
