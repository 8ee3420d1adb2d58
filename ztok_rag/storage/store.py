"""`ZStore`: compressed texts, keyed by the text and by the checkpoint."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ztok_rag.codec.base import cache_dir
from ztok_rag.codec.compressed_text import CompressedText, stored_length
from ztok_rag.errors import ZtokError, check_rate
from ztok_rag.forks import ForkSafeLock
from ztok_rag.inputs import absolute_path, as_iterator, as_list
from ztok_rag.storage.backends import BackendError
from ztok_rag.storage.closing import Closing
from ztok_rag.storage.entries import Entries
from ztok_rag.storage.handle import secret_id
from ztok_rag.storage.opening import open_folder, open_redis
from ztok_rag.storage.secret import given_secret
from ztok_rag.storage.url import StoreUrl, is_url

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


class ZStore(Closing):
    """Z-token sequences in a folder or in Redis, with the secret that signs their handles.

    Entries are raw bytes, and nothing that is read is unpickled. Threads may share an object, and
    processes may share a folder; machines may share a Redis database. The first to write the
    Z-tokens of a text wins. Caching never makes a query fail: an entry that cannot be read is
    compressed again, with a warning. What cannot be written waits in memory, up to 64 MiB, and is
    written when that is possible again.
    """

    def __init__(
        self,
        path: str | Path | StoreUrl | None = None,
        *,
        secret: bytes | None = None,
        size_limit: int | None = None,
    ) -> None:
        """Open the store in folder `path`, which is made if needed, or in a Redis database.

        A store that is there and cannot be written is only read.

        Args:
            path: a folder, or a URL: `redis://:PASSWORD@HOST:PORT/DB`, `rediss://…` with TLS, or
                `unix:///PATH?db=DB`. `?prefix=NAME` keeps several stores apart in one database.
                `None` is the folder `store` in the package's cache folder.
            secret: 32 bytes that sign handles, so that several machines accept each other's;
                `None` is what the file that `ZTOK_SECRET_FILE` names holds, else the one that the
                first to open the folder or the database has made there.
            size_limit: most bytes of all values. Above, entries are dropped that were not used for
                longest, but none that an index refers to. `None` is no limit.

        Raises:
            ZtokError: the folder cannot be made, or is there without a store and not writable; the
                server does not answer and no secret is given, or refuses the password; the URL,
                the secret or the limit is malformed; or the package redis is not installed.
        """
        is_whole = isinstance(size_limit, int) and not isinstance(size_limit, bool)
        if size_limit is not None and (not is_whole or size_limit < 1):
            raise ZtokError(
                f"size_limit is a whole number of bytes, at least 1 byte, not {size_limit!r}; "
                "None is no limit."
            )
        given = given_secret(secret)
        self._place: Path | StoreUrl
        if isinstance(path, str) and is_url(path):
            path = StoreUrl.parse(path)
        if isinstance(path, StoreUrl):
            self._place = path
            self._cache, self._secret = open_redis(path, given, size_limit)
        else:
            self._place = absolute_path(path) if path is not None else cache_dir() / "store"
            self._cache, self._secret = open_folder(self._place, given, size_limit)
        self._own_secret = secret
        self._size_limit = size_limit
        self._stats = StoreStats()
        self._stats_lock = ForkSafeLock()
        self._compress_lock = ForkSafeLock()
        self._entries = Entries(self._cache, self.name)

    def __reduce__(
        self,
    ) -> tuple[Callable[..., ZStore], tuple[Path | StoreUrl, bytes | None, int | None]]:
        """A copy, also one in another process, is the same folder or database opened again."""
        # That of a database has its secret, so that it can be made while the server is away.
        secret = self._secret if isinstance(self._place, StoreUrl) else self._own_secret
        return _opened, (self._place, secret, self._size_limit)

    def __repr__(self) -> str:
        return f"ZStore({self.name!r})"

    def __len__(self) -> int:
        """Number of entries.

        Raises:
            ZtokError: the store cannot be read.
        """
        return self._entries.read(self._cache.__len__)

    def close(self) -> None:
        """Close connections. They open again when the store is used."""
        self._entries.close()

    @property
    def name(self) -> str:
        """The folder; of a URL all but user, password and options."""
        return self._place.name if isinstance(self._place, StoreUrl) else str(self._place)

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            ZtokError: the store is in Redis.
        """
        if isinstance(self._place, StoreUrl):
            raise ZtokError(f"the store {self.name} has no folder; its `name` tells it apart.")
        return self._place

    @property
    def is_read_only(self) -> bool:
        """Whether the folder could not be written when it was opened."""
        return self._cache.is_read_only

    @property
    def size_limit(self) -> int | None:
        """Most bytes of all values; `None` is no limit."""
        return self._size_limit

    @property
    def secret(self) -> bytes:
        """The key that signs handles, 32 bytes: the one given, or one made once per store."""
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

    # -- entries

    def get(self, compressor: ZCompressor, text: str) -> CompressedText | None:
        """`text` as `compressor` has compressed it before, or `None`.

        An entry that cannot be read counts as absent, with a warning.
        """
        return self.get_many(compressor, [text]).get(text)

    def get_many(self, compressor: ZCompressor, texts: Sequence[str]) -> dict[str, CompressedText]:
        """Those of `texts` that `compressor` has compressed before, by one query."""
        texts = list(dict.fromkeys(as_list(texts, "texts to look up")))
        found = self._find(compressor, texts)
        self._count(hits=len(found), misses=len(texts) - len(found))
        return found

    def length(self, fingerprint: str, text: str) -> int | None:
        """Source tokens of `text` as checkpoint `fingerprint` has compressed it; needs no model."""
        return self.lengths(fingerprint, [text]).get(text)

    def lengths(self, fingerprint: str, texts: Sequence[str]) -> dict[str, int]:
        """`length` of those of `texts` that are there."""
        return self._read(_TEXT + fingerprint, texts, lambda _, data: stored_length(data))

    def put(self, text: str, compressed: CompressedText) -> None:
        """Keep `text` as compressed, unless it is there. A failure to write is a warning."""
        self.put_many({text: compressed})

    def put_many(self, compressed: Mapping[str, CompressedText]) -> None:
        """`put` of several texts at once."""
        entries = {_key(own.fingerprint, text): own.to_bytes() for text, own in compressed.items()}
        self._entries.put(entries)

    def get_bytes(self, kind: str, text: str) -> bytes | None:
        """The bytes that `put_bytes` wrote for `text`, or `None`."""
        return self.get_bytes_many(kind, [text]).get(text)

    def get_bytes_many(self, kind: str, texts: Sequence[str]) -> dict[str, bytes]:
        """`get_bytes` of those of `texts` that are there."""
        return self._read(kind, texts, lambda _, data: data)

    def put_bytes(self, kind: str, text: str, data: bytes) -> None:
        """Keep further bytes of `text` under the name `kind`. They are deleted with the text."""
        self.put_bytes_many(kind, {text: data})

    def put_bytes_many(self, kind: str, data: Mapping[str, bytes]) -> None:
        """`put_bytes` of several texts at once.

        Raises:
            ZtokError: the name has a colon.
        """
        if ":" in kind:
            raise ZtokError(f"a kind of entries has no colon, as {kind!r} has; leave it out.")
        entries = {f"{kind}:{_content_hash(text)}": value for text, value in data.items()}
        self._entries.put(entries, replaces=True)

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
        known = self.get_many(compressor, texts)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            # One compression at a time; a thread that waited finds what the one before it made.
            with self._compress_lock:
                late = self._find(compressor, missing)
                self._count(hits=len(late))
                missing = [text for text in missing if text not in late]
                known |= late
                if missing:
                    known |= self._compress(compressor, missing)
                self._count(compressed=len(missing))
        return [known[text] for text in texts], len(missing)

    # -- what is kept, and what goes

    def delete(self, texts: Sequence[str], *, owner: str | None = None) -> int:
        """Remove the entries of `texts`, for every checkpoint.

        In a folder, their bytes are overwritten on disk, in the write-ahead log, too.

        Args:
            texts: any number.
            owner: what others than this one have pinned stays; `None` spares nothing.

        Returns:
            Number of entries removed.

        Raises:
            ZtokError: the store cannot be read or written.
        """
        hashes = {_content_hash(text) for text in as_list(texts, "texts to delete")}
        return self._entries.delete_texts(hashes, owner)

    def delete_checkpoint(self, fingerprint: str) -> int:
        """Remove all Z-tokens of checkpoint `fingerprint`; returns the number of entries.

        Raises:
            ZtokError: the store cannot be read or written.
        """
        return self._entries.delete(lambda: self._cache.delete_kinds([_TEXT + fingerprint]))

    def prune(self, fingerprint: str, texts: Iterable[str], *, owner: str | None = None) -> int:
        """Remove all Z-tokens except those of `texts` by checkpoint `fingerprint`.

        Z-tokens that an earlier version made go in any case. Entries of `put_bytes` stay if they
        belong to one of the texts. In a store that is shared, what others use goes, too.

        Args:
            fingerprint: of the checkpoint.
            texts: any number; read once, and not held.
            owner: who is to have pinned these texts and no others; `None` leaves pins as they are.

        Returns:
            Number of entries removed.

        Raises:
            ZtokError: the store cannot be read or written.
        """
        hashes = {_content_hash(text) for text in as_iterator(texts, "texts to keep")}

        def is_foreign(kind: str) -> bool:
            is_text = kind.startswith(_TEXT) and kind != _TEXT + fingerprint
            return is_text or kind.startswith(_FORMER)

        def delete() -> int:
            deleted = 0 if owner is None else self._pin_only(owner, hashes)
            foreign = [kind for kind in self._cache.kinds() if is_foreign(kind)]
            return deleted + self._cache.delete_kinds(foreign) + self._cache.delete_others(hashes)

        return self._entries.delete(delete)

    def pin(self, owner: str, texts: Iterable[str]) -> None:
        """Keep the entries of `texts` from being dropped for the size limit.

        What is not there yet is kept when it comes. A failure is a warning, and is made up for.

        Args:
            owner: a name of who needs them; each has pins of its own.
            texts: any number.
        """
        self._entries.pin(owner, {_content_hash(text) for text in texts})

    def unpin(self, owner: str, texts: Iterable[str]) -> None:
        """Undo `pin`. A failure is a warning; the entries then stay until they are deleted."""
        self._entries.unpin(owner, {_content_hash(text) for text in texts})

    def pin_only(self, owner: str, texts: Iterable[str]) -> None:
        """Pin `texts`, and delete what else `owner` had pinned and nobody else has.

        Raises:
            ZtokError: the store cannot be read or written.
        """
        hashes = {_content_hash(text) for text in texts}
        self._entries.delete(lambda: self._pin_only(owner, hashes))

    def _pin_only(self, owner: str, hashes: set[str]) -> int:
        self._cache.pin(owner, hashes)
        deleted = 0
        for page in self._cache.pinned(owner):
            if stale := [content for content in page if content not in hashes]:
                deleted += self._cache.delete_contents(stale, owner=owner)
                self._cache.unpin(owner, stale)
        return deleted

    def has_pins(self, owner: str) -> bool | None:
        """Whether `owner` has pinned anything; `None` if the store cannot tell now."""
        try:
            return next(self._cache.pinned(owner), None) is not None
        except BackendError:
            return None

    @property
    def size_bytes(self) -> int:
        """Bytes of all values, without keys and without the database's own bytes.

        Raises:
            ZtokError: the store cannot be read.
        """
        return self._entries.read(self._cache.value_bytes)

    def size_of(self, texts: Iterable[str]) -> int:
        """Bytes of the values of all entries of `texts`.

        Raises:
            ZtokError: the store cannot be read.
        """
        hashes = {_content_hash(text) for text in texts}
        return self._entries.read(lambda: self._cache.content_bytes(hashes))

    # -- reading and writing

    def _find(self, compressor: ZCompressor, texts: Sequence[str]) -> dict[str, CompressedText]:
        def parse(text: str, data: bytes) -> CompressedText:
            (tokens,) = compressor.tokenize([text])
            return CompressedText.from_bytes(data, tokens)

        return self._read(_TEXT + compressor.fingerprint, texts, parse)

    def _compress(self, compressor: ZCompressor, texts: Sequence[str]) -> dict[str, CompressedText]:
        """Compress texts and keep them; those that another process was first with are its own."""
        made = dict(zip(texts, compressor.compress_all_rates(texts), strict=True))
        keys = {_key(own.fingerprint, text): text for text, own in made.items()}
        entries = {key: made[text].to_bytes() for key, text in keys.items()}
        for key, first in self._entries.put(entries).items():
            if first != entries[key]:
                text = keys[key]
                try:
                    made[text] = CompressedText.from_bytes(first, compressor.tokenize([text])[0])
                except Exception:  # it is damaged, so ours takes its place
                    self._entries.put({key: entries[key]}, replaces=True)
        return made

    def _read(
        self, kind: str, texts: Sequence[str], parse: Callable[[str, bytes], Value]
    ) -> dict[str, Value]:
        """The entries of a kind that are there. One that cannot be read is removed."""
        keys = {f"{kind}:{_content_hash(text)}": text for text in texts}
        found: dict[str, Value] = {}
        for key, data in self._entries.get(list(keys)).items():
            try:
                if isinstance(data, ValueError):
                    raise data
                found[keys[key]] = parse(keys[key], data)
            except Exception as error:  # a damaged entry may raise anything
                self._count(corrupt=1)
                self._entries.discard(key)
                warnings.warn(
                    f"an entry of the store {self.name} cannot be read ({error}); its text is "
                    "compressed again.",
                    stacklevel=4,
                )
        return found

    def _count(self, **added: int) -> None:
        with self._stats_lock:
            now = {name: getattr(self._stats, name) + n for name, n in added.items()}
            self._stats = replace(self._stats, **now)


def _opened(place: Path | StoreUrl, secret: bytes | None, size_limit: int | None = None) -> ZStore:
    return ZStore(place, secret=secret, size_limit=size_limit)


def _key(fingerprint: str, text: str) -> str:
    return f"{_TEXT}{fingerprint}:{_content_hash(text)}"


def _content_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
