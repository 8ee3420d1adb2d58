"""The database of a store: keys are text, values are bytes, nothing is unpickled.

All uses of what diskcache does not document are in this file; `pyproject.toml` bounds its version
from above because of them.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_BINARY, MODE_RAW, UNKNOWN

from ztok_rag.forks import ForkSafeLock


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """A diskcache `Disk` that writes and reads `str` keys and `bytes` values only.

    diskcache's own `Disk` pickles other types, and unpickles each row that is marked as pickled.
    """

    def put(self, key: object) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError(f"a store key is str, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: bool) -> str:
        if not raw or not isinstance(key, str):
            raise ValueError("the key is not text")
        return key

    def store(self, value: object, read: bool, key: object = UNKNOWN) -> Any:
        if read or not isinstance(value, bytes):
            raise TypeError(f"a store value is bytes, not {type(value).__name__}")
        return super().store(value, False, key=key)

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> bytes:
        if mode == MODE_RAW and isinstance(value, bytes):
            return value
        if mode == MODE_BINARY and filename is not None:
            if not self._is_inside(filename):
                raise ValueError("its file lies outside the store")
            try:
                return Path(self._directory, filename).read_bytes()
            except OSError as error:  # diskcache would take this for an absent entry
                raise ValueError(f"its file cannot be read: {error.strerror}") from error
        raise ValueError("it is not raw bytes")

    def remove(self, file_path: str) -> None:
        if self._is_inside(file_path):
            super().remove(file_path)

    def _is_inside(self, filename: str) -> bool:
        root = Path(self._directory).resolve()
        return (root / filename).resolve().is_relative_to(root)


_VALUE_BYTES = "SELECT COALESCE(SUM(COALESCE(LENGTH(value), 0) + size), 0) FROM Cache"


class _Literal(str):
    """A path as it is: diskcache replaces `$NAME` in others by an environment variable."""

    def __str__(self) -> str:
        return self

    def __contains__(self, part: object) -> bool:
        return part not in ("$", "%") and isinstance(part, str) and super().__contains__(part)


class BytesCache(diskcache.Cache):  # type: ignore[misc]
    """A diskcache `Cache` on `BytesDisk`, with what its public interface cannot do at once."""

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(_Literal(directory), disk=BytesDisk, **settings)

    @property
    def _con(self) -> Any:
        """diskcache's connection, where a cut database is one that is damaged."""
        try:
            return super()._con
        except (AttributeError, TypeError, ValueError) as error:
            raise sqlite3.DatabaseError(f"its settings cannot be read: {error}") from error

    def all_keys(self) -> list[str]:
        """Every key, in one query; iterating asks for a hundred at a time, while others write."""
        rows = self._sql("SELECT key FROM Cache").fetchall()
        return [key for (key,) in rows if isinstance(key, str)]

    def value_bytes(self) -> int:
        """Bytes of all values, without keys and what the database adds; `volume` counts both."""
        ((size,),) = self._sql(_VALUE_BYTES).fetchall()
        return int(size)

    def empty_log(self) -> bool:
        """Move the write-ahead log into the database and cut it; false while it is in use."""
        ((busy, _, _),) = self._sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy


class ReadOnlyCache:
    """The entries of a `BytesCache` in a folder that cannot be written."""

    def __init__(self, directory: str) -> None:
        """Open the database.

        Raises:
            sqlite3.Error: it is not a database of a `BytesCache`.
        """
        self._disk = BytesDisk(directory)
        self._lock = ForkSafeLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0  # a connection is of no use after a fork
        self._path = Path(directory, "cache.db").as_uri()
        len(self)

    def __len__(self) -> int:
        return self._number("SELECT COUNT(*) FROM Cache")

    def __contains__(self, key: str) -> bool:
        return self._row(key) is not None

    def get(self, key: str, retry: bool = True) -> bytes | None:
        """An entry, or `None`; raises `ValueError` where it cannot be read."""
        row = self._row(key)
        return None if row is None else self._disk.fetch(*row, False)

    def value_bytes(self) -> int:
        """Bytes of all values."""
        return self._number(_VALUE_BYTES)

    def set(self, key: str, value: bytes, retry: bool = True) -> None:
        """Raise `sqlite3.OperationalError`."""
        raise sqlite3.OperationalError("its folder is read-only")

    def delete(self, key: str, retry: bool = True) -> None:
        """Raise `sqlite3.OperationalError`."""
        raise sqlite3.OperationalError("its folder is read-only")

    def close(self) -> None:
        """Close the connection; it opens again when it is used."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _row(self, key: str) -> tuple[int, str | None, object] | None:
        rows = self._all("SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1", key)
        return rows[0] if rows else None

    def _number(self, query: str) -> int:
        ((number,),) = self._all(query)
        return int(number)

    def _all(self, query: str, *values: object) -> list[Any]:
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
