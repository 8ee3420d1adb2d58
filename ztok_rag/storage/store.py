"""`ZStore`: compressed texts on disk, keyed by the text and by the checkpoint."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import diskcache

from ztok_rag.codec.base import cache_dir
from ztok_rag.codec.compressed_text import CompressedText, stored_length
from ztok_rag.errors import ZtokError, check_rate
from ztok_rag.forks import ForkSafeLock
from ztok_rag.inputs import absolute_path, as_iterator, as_list
from ztok_rag.storage.disk import BytesCache, ReadOnlyCache
from ztok_rag.storage.handle import secret_id
from ztok_rag.storage.secret import given_secret, load_secret

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.sequence import ZSequence


Value = TypeVar("Value")

_TEXT = "text-"  # begins the keys of compressed texts; the fingerprint follows
_FORMER = "nested-"  # begins the keys of compressed texts of earlier versions, which nobody reads


@dataclass(frozen=True)
class StoreStats:
    """What a `ZStore` object has done since it was opened.

    Attributes:
        hits: look-ups that found an entry.
        misses: look-ups that found none, or one that could not be read.
        compressed: texts that were compressed.
        corrupt: entries that could not be read.
    """

    hits: int = 0
    misses: int = 0
    compressed: int = 0
    corrupt: int = 0


class Closing(ABC):
    """Closed at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ZStore(Closing):
    """A folder of Z-token sequences, with the secret that signs this installation's handles.

    Entries are raw bytes, and nothing read from the folder is unpickled. Threads may share an
    object, and processes may share a folder. Caching never makes a query fail: an entry that
    cannot be read is compressed again, with a warning, and so is a text that cannot be written.
    """

    def __init__(self, path: str | Path | None = None, *, secret: bytes | None = None) -> None:
        """Open the store in folder `path`, which is made if needed.

        A store that is there and cannot be written is only read.

        Args:
            path: `None` is the folder `store` in the package's cache folder.
            secret: 32 bytes that sign handles, so that several machines accept each other's;
                `None` is what the file that `ZTOK_SECRET_FILE` names holds, else the folder's own.

        Raises:
            ZtokError: the folder cannot be made, or is there without a store and not writable; or
                the secret has another length, or its file cannot be read.
        """
        given = given_secret(secret)
        self.path = absolute_path(path) if path is not None else cache_dir() / "store"
        self._cache: BytesCache | ReadOnlyCache
        database = self.path / "cache.db"
        try:
            if database.is_file() and not _all_writable(self.path, database):
                self._secret = given or load_secret(self.path / "secret", is_read_only=True)
                self._cache = ReadOnlyCache(str(self.path))
            else:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._secret = given or load_secret(self.path / "secret")
                self._cache = self._open()
        except (OSError, ValueError, sqlite3.Error) as error:  # a path with a NUL is the second
            raise ZtokError(
                f"cannot open the store {self.path} ({error}); give ZStore a writable folder."
            ) from error
        self._own_secret = secret
        self._stats = StoreStats()
        self._stats_lock = ForkSafeLock()
        self._compress_lock = ForkSafeLock()

    def __reduce__(self) -> tuple[Callable[..., ZStore], tuple[Path, bytes | None]]:
        """A copy, also one in another process, is the same folder opened again."""
        return _opened, (self.path, self._own_secret)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._cache)

    def close(self) -> None:
        """Close the database connection. It opens again when the store is used."""
        self._cache.close()

    @property
    def is_read_only(self) -> bool:
        """Whether the folder could not be written when it was opened."""
        return isinstance(self._cache, ReadOnlyCache)

    @property
    def secret(self) -> bytes:
        """The key that signs handles, 32 bytes: the one given, or one made once per folder."""
        return self._secret

    @property
    def id(self) -> str:
        """8 hex digits of the secret that do not reveal it: a store made anew has others."""
        return secret_id(self._secret).hex()

    @property
    def stats(self) -> StoreStats:
        """Counters as they stand now."""
        with self._stats_lock:
            return self._stats

    def get(self, compressor: ZCompressor, text: str) -> CompressedText | None:
        """`text` as `compressor` has compressed it before, or `None`.

        An entry that cannot be read counts as absent, with a warning.
        """

        def parse(data: bytes) -> CompressedText:
            (tokens,) = compressor.tokenize([text])
            return CompressedText.from_bytes(data, tokens)

        found = self._read(_key(compressor.fingerprint, text), parse)
        self._count(**({"misses": 1} if found is None else {"hits": 1}))
        return found

    def length(self, fingerprint: str, text: str) -> int | None:
        """Source tokens of `text` as checkpoint `fingerprint` has compressed it; needs no model."""
        return self._read(_key(fingerprint, text), stored_length)

    def put(self, text: str, compressed: CompressedText) -> None:
        """Keep `text` as compressed. A failure to write is a warning."""
        self._write(_key(compressed.fingerprint, text), compressed.to_bytes())

    def get_bytes(self, kind: str, text: str) -> bytes | None:
        """The bytes that `put_bytes` wrote for `text`, or `None`."""
        return self._read(f"{kind}:{_content_hash(text)}", bytes)

    def put_bytes(self, kind: str, text: str, data: bytes) -> None:
        """Keep further bytes of `text` under the name `kind`. They are deleted with the text."""
        self._write(f"{kind}:{_content_hash(text)}", data)

    def _read(self, key: str, parse: Callable[[bytes], Value]) -> Value | None:
        """An entry, or `None` if there is none. An entry that cannot be read is removed."""
        try:
            data = self._cache.get(key, retry=True)
            return None if data is None else parse(data)
        except Exception as error:  # a damaged entry may raise anything
            self._count(corrupt=1)
            with suppress(OSError, sqlite3.Error, diskcache.Timeout):
                self._cache.delete(key, retry=True)
            warnings.warn(
                f"an entry of the store {self.path} cannot be read ({error}); its text is "
                "compressed again.",
                stacklevel=3,
            )
            return None

    def _write(self, key: str, data: bytes) -> None:
        try:
            self._cache.set(key, data, retry=True)
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            warnings.warn(
                f"the store {self.path} cannot be written ({error}); "
                "texts will be compressed again until it can.",
                stacklevel=3,
            )

    def delete(self, texts: Sequence[str]) -> int:
        """Remove the entries of `texts`, for every checkpoint.

        Their bytes are overwritten on disk, in the write-ahead log, too.

        Returns:
            Number of entries removed.

        Raises:
            ZtokError: the store cannot be read or written.
        """
        gone = {_content_hash(text) for text in as_list(texts, "texts to delete")}
        return self._remove(lambda key: key.rpartition(":")[2] in gone)

    def prune(self, fingerprint: str, texts: Iterable[str]) -> int:
        """Remove all Z-tokens except those of `texts` by checkpoint `fingerprint`.

        Z-tokens that an earlier version made go in any case. Entries of `put_bytes` stay if they
        belong to one of the texts.

        Returns:
            Number of entries removed.

        Raises:
            ZtokError: the store cannot be read or written.
        """
        hashes = {_content_hash(text) for text in as_iterator(texts, "texts to keep")}

        def doomed(key: str) -> bool:
            start, _, content = key.rpartition(":")
            foreign = start.startswith(_TEXT) and start != _TEXT + fingerprint
            return content not in hashes or foreign or start.startswith(_FORMER)

        return self._remove(doomed)

    @property
    def size_bytes(self) -> int:
        """Bytes of all values, without keys and without the database's own bytes.

        Raises:
            ZtokError: the store cannot be read.
        """
        try:
            return self._cache.value_bytes()
        except (OSError, sqlite3.Error) as error:
            raise ZtokError(f"the store {self.path} cannot be read ({error}).") from error

    def get_or_compress(
        self, compressor: ZCompressor, texts: Sequence[str], rate: float = 4.0
    ) -> list[ZSequence]:
        """The sequences of `texts`, in order. Absent ones are compressed in one batch.

        Args:
            compressor: makes what is absent.
            texts: any number, of any length.
            rate: source tokens per Z-token. A text is kept once for all rates.

        Raises:
            ZtokError: a text is empty, or the rate is out of range.
        """
        check_rate(rate)
        texts = as_list(texts, "texts to compress")
        if rate == 1:
            return compressor.compress(texts, rate)
        return [text.at(rate, compressor.slots) for text in self.resolve(compressor, texts)[0]]

    def resolve(
        self, compressor: ZCompressor, texts: Sequence[str]
    ) -> tuple[list[CompressedText], int]:
        """`texts` compressed for all rates, and how many of them had to be compressed."""
        texts = as_list(texts, "texts to compress")
        known = {text: self.get(compressor, text) for text in dict.fromkeys(texts)}
        compressed = 0
        if any(found is None for found in known.values()):
            # One compression at a time; a thread that waited finds what the one before it made.
            with self._compress_lock:
                for text in [text for text, found in known.items() if found is None]:
                    if self._contains(_key(compressor.fingerprint, text)):
                        known[text] = self.get(compressor, text)
                missing = [text for text, found in known.items() if found is None]
                made = compressor.compress_all_rates(missing)
                for text, own in zip(missing, made, strict=True):
                    known[text] = own
                    self.put(text, own)
                compressed = len(missing)
                self._count(compressed=compressed)
        return [found for text in texts if (found := known[text]) is not None], compressed

    def _remove(self, doomed: Callable[[str], bool]) -> int:
        """Remove the entries whose key is `doomed`, and return their number."""
        if isinstance(self._cache, ReadOnlyCache):
            raise ZtokError(
                f"the store {self.path} is read-only; make its folder writable and open it again."
            )
        try:
            keys = [key for key in self._cache.all_keys() if doomed(key)]
            if keys:
                with self._cache.transact(retry=True):
                    for key in keys:
                        self._cache.delete(key, retry=True)
                self._empty_log()
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            raise ZtokError(
                f"entries of the store {self.path} cannot be deleted ({error}); make its folder "
                "writable and delete again."
            ) from error
        return len(keys)

    def _empty_log(self) -> None:
        """Move the write-ahead log into the database and truncate it."""
        if isinstance(self._cache, BytesCache) and not self._cache.empty_log():
            warnings.warn(
                f"the log of the store {self.path} is in use; what was deleted stays in it until "
                "the next deletion, or until every process has closed the store.",
                stacklevel=4,
            )

    def _contains(self, key: str) -> bool:
        try:
            return key in self._cache
        except sqlite3.Error:
            return False

    def _open(self) -> BytesCache:
        """Open the database. A damaged one is renamed and replaced by an empty one."""
        # Entries are small and costly to make, so none is evicted, and all are in the database.
        # Deleted entries are overwritten, because codes name words of their text.
        settings: dict[str, Any] = {
            "eviction_policy": "none",
            "disk_min_file_size": 2**20,
            "sqlite_secure_delete": 1,
        }
        try:
            return BytesCache(str(self.path), **settings)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            aside = f"cache.db.damaged-{time.time_ns()}"
            os.replace(self.path / "cache.db", self.path / aside)
            for suffix in ("-wal", "-shm"):
                (self.path / f"cache.db{suffix}").unlink(missing_ok=True)
            warnings.warn(
                f"the store {self.path} is damaged ({error}); it starts empty, "
                f"and the damaged file is kept as {aside}.",
                stacklevel=3,
            )
            return BytesCache(str(self.path), **settings)

    def _count(self, **added: int) -> None:
        with self._stats_lock:
            now = {name: getattr(self._stats, name) + n for name, n in added.items()}
            self._stats = replace(self._stats, **now)


def _opened(path: Path, secret: bytes | None) -> ZStore:
    return ZStore(path, secret=secret)


def _all_writable(*paths: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in paths)


def _key(fingerprint: str, text: str) -> str:
    return f"{_TEXT}{fingerprint}:{_content_hash(text)}"


def _content_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
