"""What a `ZTokenIndex` asks of the documents that it holds, wherever they are."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from llama_index.core import Document
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from ztok_rag.errors import ZtokError
from ztok_rag.index.documents import KnownDocument
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.holding import Holding
from ztok_rag.storage.store import ZStore


class Corpus(ABC):
    """The documents of one index, their chunks and their vectors.

    A change is atomic: after an error or a kill, the disk holds the documents from before or after
    it. Threads may search while another changes the documents.

    Attributes:
        folder: the files.
        manifest: the settings that the files were written with.
        store: the Z-tokens.
        holding: the share that the index has in the store.
    """

    folder: IndexFolder
    manifest: Manifest
    store: ZStore
    holding: Holding

    @property
    @abstractmethod
    def vector_store(self) -> BasePydanticVectorStore:
        """Where the vectors are."""

    @property
    @abstractmethod
    def document_ids(self) -> tuple[str, ...]:
        """Ids of the documents, sorted."""

    @property
    @abstractmethod
    def document_count(self) -> int:
        """Number of documents."""

    @property
    @abstractmethod
    def chunk_count(self) -> int:
        """Number of chunks."""

    @abstractmethod
    def has_document(self, doc_id: str) -> bool:
        """Whether a document is in the index."""

    @abstractmethod
    def known(self, documents: Collection[Document]) -> Mapping[str, KnownDocument]:
        """The documents of the index that these may be, by their ids, in its order."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """The text of every chunk."""

    @abstractmethod
    def search(self, query: VectorStoreQuery, **arguments: Any) -> list[NodeWithScore]:
        """The best chunks for a query with an embedding, best first.

        Args:
            query: what is asked of the vector store.
            arguments: further ones of its `query`.

        Raises:
            ZtokError: the vector store does not support what is asked.
        """

    @abstractmethod
    def change(
        self, nodes: Sequence[BaseNode], hashes: Mapping[str, str], remove: Sequence[str]
    ) -> None:
        """Delete documents, then add chunks.

        Args:
            nodes: chunks with embeddings, of the documents to add; their Z-tokens are in the store.
            hashes: hash of each of these documents, by id.
            remove: ids of the documents to delete.
        """

    @abstractmethod
    def commit(self, manifest: Manifest) -> None:
        """Write new settings to disk, under a new revision."""

    @abstractmethod
    def optimize(self) -> None:
        """Make searches fast and files few, where the way of keeping them needs that."""


def asked(
    vectors: BasePydanticVectorStore, query: VectorStoreQuery, arguments: Mapping[str, Any]
) -> VectorStoreQueryResult:
    """What a vector store finds.

    Raises:
        ZtokError: it does not support what is asked.
    """
    try:
        return vectors.query(query, **arguments)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise ZtokError(
            f"the {vectors.class_name()} cannot search as it is asked to ({error}); change the "
            "retriever's arguments, or build the index with another vector store."
        ) from error


def ids_of(found: VectorStoreQueryResult) -> list[str]:
    """Ids of what a vector store found."""
    if found.ids is not None:
        return list(found.ids)
    return [node.node_id for node in found.nodes or ()]


def matched(
    corpus: Corpus,
    query: VectorStoreQuery,
    found: VectorStoreQueryResult,
    nodes: Sequence[BaseNode | None],
) -> list[NodeWithScore]:
    """The nodes that were found, with their scores.

    Args:
        corpus: where they are from.
        query: what was asked.
        found: what the vector store found.
        nodes: a node for each of its ids; `None`, with a warning, where the index has none.

    Raises:
        ZtokError: the vector store did not heed `doc_ids` or `node_ids`.
    """
    vectors = corpus.vector_store.class_name()
    present = [node for node in nodes if node is not None]
    if len(present) < len(nodes):
        warnings.warn(
            f"the {vectors} found {len(nodes) - len(present)} chunks that are not of the index "
            f"{corpus.folder.path}; they are left out.",
            stacklevel=5,
        )
    for name, wanted, got in (
        ("doc_ids", query.doc_ids, {node.ref_doc_id for node in present}),
        ("node_ids", query.node_ids, {node.node_id for node in present}),
    ):
        if wanted is not None and not got <= set(wanted):
            raise ZtokError(
                f"the {vectors} does not heed {name!r}; leave it out, or build the index with a "
                "vector store that does."
            )
    scores: list[float | None] = [*(found.similarities or [])] or [None] * len(nodes)
    return [
        NodeWithScore(node=node, score=None if score is None else float(score))
        for node, score in zip(nodes, scores, strict=True)
        if node is not None
    ]
