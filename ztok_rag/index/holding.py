"""The share that an index has in a store: which texts it pins, and what it may delete."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from ztok_rag.errors import ZtokError
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.storage.store import ZStore

_OWN = "index"  # pins the texts of the one index whose store this is


class Holding:
    """The texts of an index in a store of its own, or in one that it shares with others.

    The texts are pinned in the store, so that a size limit never drops their Z-tokens. In a shared
    store, what other indexes pin is not deleted.

    Attributes:
        store: the Z-tokens.
        is_shared: whether the store is not the one in the index's folder.
    """

    def __init__(self, folder: IndexFolder, store: ZStore) -> None:
        """Set up.

        Args:
            folder: of the index.
            store: its own or a shared one.

        Raises:
            ZtokError: the name that it pins by cannot be written to the folder.
        """
        self.store = store
        self.is_shared = is_shared(folder, store)
        self._owner = folder.owner() if self.is_shared else _OWN

    def is_fresh(self) -> bool:
        """Whether the store has nothing that an index or a build of before has left for this one.

        Raises:
            ZtokError: the store cannot be read.
        """
        if self.is_shared:
            return self.store.has_pins(self._owner) is False
        return len(self.store) == 0

    def add(self, texts: Iterable[str]) -> None:
        """Pin texts; before the index refers to them."""
        self.store.pin(self._owner, texts)

    def add_if_none(self, texts: Callable[[], Iterable[str]]) -> None:
        """Pin texts if the store has no pins of this index, as one of before and a new one."""
        if not self.store.is_read_only and self.store.has_pins(self._owner) is False:
            self.add(texts())

    def delete(self, texts: Iterable[str]) -> None:
        """Delete the Z-tokens of texts; before the index refers to them no more.

        Raises:
            ZtokError: the store cannot be written.
        """
        self.store.delete(list(texts), owner=self._owner)

    def release(self, texts: Iterable[str]) -> None:
        """Unpin texts; after the index refers to them no more."""
        self.store.unpin(self._owner, texts)

    def keep_only(self, fingerprint: str, texts: Iterable[str]) -> None:
        """Delete what the index does not need: all but the Z-tokens of `texts` by a checkpoint.

        In a shared store that is what this index pinned alone. What other checkpoints made of
        `texts` stays there, as others may use it. The texts are read once, and not held.

        Raises:
            ZtokError: the store cannot be written.
        """
        if self.is_shared:
            self.store.pin_only(self._owner, texts)
        else:
            self.store.prune(fingerprint, texts, owner=self._owner)

    def stored_bytes(self, texts: Callable[[], Iterable[str]]) -> int:
        """Bytes of the entries of the index: of all in its own store, else of those of `texts`."""
        return self.store.size_of(texts()) if self.is_shared else self.store.size_bytes


def is_shared(folder: IndexFolder, store: ZStore) -> bool:
    """Whether a store is not the one in the folder of an index."""
    return store.name != str(folder.store)


def store_to_build(folder: IndexFolder, given: ZStore | str | Path | None) -> ZStore:
    """The store of a new index.

    Args:
        folder: of the index; one that it holds may have another store, which is a warning.
        given: the store or its place; `None` is the one in the folder.
    """
    store = given if isinstance(given, ZStore) else ZStore(folder.store if given is None else given)
    former = folder.former_store()
    if former and former != store.name:
        warnings.warn(
            f"the Z-tokens of the index that is replaced stay in the store {former}; delete them "
            f"there with pin_only({folder.owner()!r}, []) if no copy of that index is in use.",
            stacklevel=4,
        )
    return store


def store_to_load(
    folder: IndexFolder, manifest: Manifest, given: ZStore | str | Path | None
) -> ZStore:
    """The store of an index that is there.

    Raises:
        ZtokError: it shares a store that is not given, or has its own and another is given.
    """
    store = given if isinstance(given, ZStore | None) else ZStore(given)
    if not manifest.store:
        if store is not None and is_shared(folder, store):
            raise ZtokError(
                f"the index {folder.path} has a store of its own; leave store out, or build the "
                "index again with this one."
            )
        return store or ZStore(folder.store)
    if store is None:  # a folder must not decide what this process connects to
        raise ZtokError(
            f"the Z-tokens of the index {folder.path} are in the store {manifest.store}; pass it "
            "as store."
        )
    return store
