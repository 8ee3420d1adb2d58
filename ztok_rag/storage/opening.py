"""Opens the backend of a store, and finds the secret that goes with it."""

from __future__ import annotations

import os
import sqlite3
import time
import warnings
from pathlib import Path

import diskcache

from ztok_rag.errors import ZtokError
from ztok_rag.storage.backends import AccessError, Backend, BackendError
from ztok_rag.storage.embedded import EmbeddedBackend
from ztok_rag.storage.read_only import ReadOnlyBackend
from ztok_rag.storage.secret import load_secret
from ztok_rag.storage.url import StoreUrl


def open_folder(path: Path, secret: bytes | None, limit: int | None) -> tuple[Backend, bytes]:
    """The backend of a folder, which is made if needed, and its secret.

    Args:
        path: the folder.
        secret: the one that was given; `None` is the folder's own.
        limit: most bytes of all values.

    Raises:
        ZtokError: it cannot be made, or is there without a store and not writable.
    """
    database = path / "cache.db"
    try:
        if database.is_file() and not _all_writable(path, database):
            return (
                ReadOnlyBackend(str(path)),
                secret or load_secret(path / "secret", is_read_only=True),
            )
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = secret or load_secret(path / "secret")
        return _open_or_replace(path, limit), secret
    # ValueError: a path with a NUL.
    except (OSError, ValueError, sqlite3.Error, diskcache.Timeout) as error:
        raise ZtokError(
            f"cannot open the store {path} ({error}); give ZStore a writable folder."
        ) from error


def open_redis(url: StoreUrl, secret: bytes | None, limit: int | None) -> tuple[Backend, bytes]:
    """The backend of a Redis database, and its secret.

    A server that does not answer is a warning where the secret is given, as texts can be
    compressed without it.

    Args:
        url: of the database.
        secret: the one that was given; `None` is the database's own.
        limit: most bytes of all values.

    Raises:
        ZtokError: the package redis is missing, the password is refused, or the server does not
            answer and no secret is given.
    """
    from ztok_rag.storage.redis_backend import RedisBackend

    backend = RedisBackend(url, limit)
    try:
        backend.open()
        return backend, secret or backend.secret()
    except AccessError as error:
        raise ZtokError(
            f"the store {url.name} refuses the user or the password ({error}); give the right "
            "ones in its URL."
        ) from None
    except BackendError as error:
        if secret is None:
            raise ZtokError(
                f"cannot open the store {url.name} ({error}); start the server, or give the secret "
                "of handles by ZTOK_SECRET_FILE to do without it."
            ) from None
        warnings.warn(
            f"the store {url.name} cannot be opened ({error}); texts are compressed until it can.",
            stacklevel=4,
        )
        return backend, secret


def _open_or_replace(path: Path, limit: int | None) -> EmbeddedBackend:
    """Open the database. A damaged one is renamed and replaced by an empty one."""
    try:
        return EmbeddedBackend(str(path), limit)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        aside = f"cache.db.damaged-{time.time_ns()}"
        os.replace(path / "cache.db", path / aside)
        for suffix in ("-wal", "-shm"):
            (path / f"cache.db{suffix}").unlink(missing_ok=True)
        warnings.warn(
            f"the store {path} is damaged ({error}); it starts empty, "
            f"and the damaged file is kept as {aside}.",
            stacklevel=5,
        )
        return EmbeddedBackend(str(path), limit)


def _all_writable(*paths: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in paths)
