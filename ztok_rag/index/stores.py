"""Where an index keeps its text and its vectors: in its folder, or in stores of the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ztok_rag.errors import ZtokError
from ztok_rag.index.folder import LANCE, OWN_STORES, SQLITE, Manifest

Store = TypeVar("Store", BaseDocumentStore, BasePydanticVectorStore)
VectorsGiven = BasePydanticVectorStore | Literal["lance"] | None
TextGiven = BaseDocumentStore | Literal["sqlite"] | None


@dataclass(frozen=True)
class Stores:
    """The stores of an index.

    Attributes:
        text: `docstore` of its manifest.
        vectors: `vector_store` of its manifest.
        docstore: the caller's, if there is one.
        vector_store: the caller's, if there is one.
    """

    text: str
    vectors: str
    docstore: BaseDocumentStore | None = None
    vector_store: BasePydanticVectorStore | None = None

    @classmethod
    def to_build(cls, docstore: TextGiven, vector_store: VectorsGiven) -> Stores:
        """The stores of a new index, by the arguments of `ZTokenIndex.build`.

        Raises:
            ZtokError: an argument is no store and no name of one.
        """
        text, vectors = _name(docstore, "docstore"), _name(vector_store, "vector_store")
        if vectors == LANCE or text:
            text, vectors = text or SQLITE, vectors or LANCE
        return cls(text, vectors, _own(docstore), _own(vector_store))

    @classmethod
    def to_load(
        cls, path: Path, manifest: Manifest, docstore: TextGiven, vector_store: VectorsGiven
    ) -> Stores:
        """The stores of an index that is there, by the arguments of `ZTokenIndex.load`.

        Raises:
            ZtokError: a store of the caller's is missing, or given where the index has its own.
        """
        own = cls(manifest.docstore, manifest.vector_store, _own(docstore), _own(vector_store))
        for what, argument, kept, given, store in (
            ("vectors", "vector_store", own.vectors, own.vector_store, vector_store),
            ("text", "docstore", own.text, own.docstore, docstore),
        ):
            is_ours = kept in ("", *OWN_STORES)
            if is_ours and _name(store, argument) not in ("", kept):
                raise ZtokError(f"the index {path} has its own {what}; leave {argument} out.")
            if not is_ours and given is None:
                verb = "are" if what == "vectors" else "is"
                raise ZtokError(
                    f"the {what} of the index {path} {verb} in a {kept} of yours; pass it as "
                    f"{argument}."
                )
        return own


def theirs(manifest: Manifest) -> str:
    """What of an index is in stores of the caller's; empty if nothing is."""
    parts = (("vectors", manifest.vector_store), ("text", manifest.docstore))
    return " and ".join(
        f"{what} in a {kept}" for what, kept in parts if kept not in ("", *OWN_STORES)
    )


def _name(store: object, argument: str) -> str:
    """As the manifest has it.

    Raises:
        ZtokError: it is no store of its kind, and no name of one.
    """
    kind: type = BaseDocumentStore if argument == "docstore" else BasePydanticVectorStore
    ours = SQLITE if argument == "docstore" else LANCE
    if store is None or store == ours:
        return store or ""
    if isinstance(store, BasePydanticVectorStore) and isinstance(store, kind):
        return str(store.class_name())
    if isinstance(store, kind):
        return type(store).__name__
    raise ZtokError(f"{argument} is a LlamaIndex {kind.__name__} or {ours!r}, not {store!r}.")


def _own(store: Store | str | None) -> Store | None:
    """The caller's store, if it is one."""
    return None if isinstance(store, str) else store
