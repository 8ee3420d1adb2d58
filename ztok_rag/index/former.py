"""The index that is in a folder before a build replaces it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llama_index.core.storage.docstore import SimpleDocumentStore

from ztok_rag.errors import ZtokError
from ztok_rag.index.catalog import CATALOG, Catalog, node_from_json
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.folder import IndexFolder, Manifest

_UNREADABLE = (ZtokError, OSError, ValueError, KeyError, TypeError)


def has_documents(folder: IndexFolder) -> bool:
    """Whether an index is in a folder that holds documents, or may hold some."""
    if not folder.exists():
        return False
    catalog = Catalog(folder.index / CATALOG)
    try:
        with folder.locked(is_reading=True):
            if catalog.path.is_file():
                with catalog.reading() as rows:
                    return bool(rows.state().documents)
            return bool(SimpleDocumentStore.from_persist_dir(str(folder.index)).docs)
    except _UNREADABLE:
        return True


def former_texts(folder: IndexFolder, manifest: Manifest) -> Iterator[str]:
    """The text of every chunk that the index in a folder has pinned in the store of a new one.

    Args:
        folder: with or without an index.
        manifest: settings of the new index.

    Raises:
        ZtokError: the index cannot be read, or its text is in a store of the caller's.
    """
    if not folder.exists() or folder.read().store != manifest.store:
        return
    catalog = Catalog(folder.index / CATALOG)
    if catalog.path.is_file():
        for _, written in catalog.chunk_ids():
            if written is None:
                raise ZtokError(f"the text of the index {folder.path} is in a store of yours.")
            yield chunk_text(node_from_json(written))
        return
    try:
        with folder.locked(is_reading=True):
            held = SimpleDocumentStore.from_persist_dir(str(folder.index)).docs
    except _UNREADABLE as error:
        raise ZtokError(f"the index {folder.path} cannot be read ({error}).") from error
    for node in held.values():
        yield chunk_text(node)


def would_empty(path: Path, method: str) -> ZtokError:
    """The error of a `method` that would leave an index without any document."""
    return ZtokError(
        f"there is no document with words, so {method}() would empty the index {path}; give "
        "documents, or allow_empty=True if that is meant."
    )
