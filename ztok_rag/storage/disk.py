"""The database of a folder: keys are text, values are bytes, nothing is unpickled.

All uses of what diskcache does not document are in this file and in `embedded.py`;
`pyproject.toml` bounds its version from above because of them.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_BINARY, MODE_RAW, UNKNOWN


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


class _Literal(str):
    """A path as it is: diskcache replaces `$NAME` in others by an environment variable."""

    def __str__(self) -> str:
        return self

    def __contains__(self, part: object) -> bool:
        return part not in ("$", "%") and isinstance(part, str) and super().__contains__(part)


class BytesCache(diskcache.Cache):  # type: ignore[misc]
    """A diskcache `Cache` on `BytesDisk`."""

    def __init__(self, directory: str, **settings: Any) -> None:
        super().__init__(_Literal(directory), disk=BytesDisk, **settings)

    @property
    def _con(self) -> Any:
        """diskcache's connection, where a cut database is one that is damaged."""
        try:
            return super()._con
        except (AttributeError, TypeError, ValueError) as error:
            raise sqlite3.DatabaseError(f"its settings cannot be read: {error}") from error
