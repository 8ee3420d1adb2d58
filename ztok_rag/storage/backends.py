"""What a `ZStore` asks of the database that keeps its entries.

The key of an entry is `KIND:HASH`. The kind says what the entry is, such as `text-` and the
fingerprint of a checkpoint; the hash is of the text that it belongs to. A backend finds entries by
key, by hash and by kind through indexes. It never holds all keys in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

T = TypeVar("T")

HASH_CHARACTERS = 64
"""Length of a hash in hexadecimal."""


class BackendError(Exception):
    """The database cannot be reached, read or written; the message is the cause alone."""


class ReadOnlyError(BackendError):
    """The database can be read only."""


class AccessError(BackendError):
    """The database refuses the user or the password."""


class Backend(Protocol):
    """A database of entries. Every method may raise `BackendError`.

    An index that refers to texts pins them under a name of its own, its owner. What is pinned is
    never evicted.
    """

    @property
    def is_read_only(self) -> bool:
        """Whether it cannot be written."""

    def __len__(self) -> int:
        """Number of entries."""

    def value_bytes(self) -> int:
        """Bytes of all values; takes the same time for any number of entries."""

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes | ValueError]:
        """The values of those keys that are there; an error in the place of one that is damaged."""

    def put_many(self, entries: Mapping[str, bytes], *, replace: bool = False) -> dict[str, bytes]:
        """Write entries, each whole or not at all, and evict others if there is a limit.

        Args:
            entries: value by key.
            replace: whether they take the place of what is there; else the first writer wins.

        Returns:
            The values that were there before and are kept, by key.
        """

    def delete_many(self, keys: Sequence[str]) -> int:
        """Delete entries by key; returns how many there were."""

    def delete_contents(self, hashes: Iterable[str], *, owner: str | None = None) -> int:
        """Delete all entries of texts.

        Args:
            hashes: of the texts.
            owner: what others than this one have pinned stays; `None` spares nothing.

        Returns:
            Number of entries deleted.
        """

    def kinds(self) -> list[str]:
        """The kinds of entries that are there."""

    def delete_kinds(self, kinds: Iterable[str]) -> int:
        """Delete all entries of some kinds; returns how many there were."""

    def delete_others(self, keep: Collection[str]) -> int:
        """Delete the entries of all texts but those with the hashes `keep`; returns how many."""

    def content_bytes(self, hashes: Iterable[str]) -> int:
        """Bytes of the values of all entries of texts."""

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        """Keep the entries of texts from being evicted, also those that are not there yet."""

    def unpin(self, owner: str, hashes: Iterable[str]) -> None:
        """Undo `pin`."""

    def pinned(self, owner: str) -> Iterator[list[str]]:
        """The hashes that `owner` has pinned, in parts."""

    def empty_log(self) -> bool:
        """Remove what was deleted from logs, too; false if it stays there for now."""

    def end_pause(self) -> None:
        """Ask again at once, also where there was no answer shortly before."""

    def close(self) -> None:
        """Close connections; they open again when they are used."""


def split_key(key: str) -> tuple[str, str]:
    """Kind and hash of a key."""
    kind, _, content = key.rpartition(":")
    return kind, content


def in_parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
