"""The vectors of a `ZTokenIndex`: a FAISS store with deletion, and LlamaIndex's index over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.index_store import SimpleIndexStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.faiss import FaissMapVectorStore  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ztok_rag.errors import ZtokError
from ztok_rag.files import check_digests
from ztok_rag.forks import in_forked_processes
from ztok_rag.index.folder import IndexFolder

# Its threads are not forked along, as in `ztok_rag.codec.base`.
in_forked_processes(lambda: faiss.omp_set_num_threads(1))


class FlatStore(FaissMapVectorStore):  # type: ignore[misc]
    """A `FaissMapVectorStore` that gives every new vector a number of its own.

    The base class takes the count of vectors as the next number. After a deletion, another vector
    may have that number.
    """

    @classmethod
    def empty(cls, dimension: int) -> FlatStore:
        """An empty store with exact search by cosine."""
        normalize = faiss.NormalizationTransform(dimension, 2.0)
        inner = faiss.IndexPreTransform(normalize, faiss.IndexFlatIP(dimension))
        return cls(faiss_index=faiss.IndexIDMap2(inner))  # type: ignore[call-arg]

    @classmethod
    def over(cls, store: FaissMapVectorStore) -> FlatStore:
        """A store that shares its vectors and maps with `store`."""
        shared = cls(faiss_index=store.client)  # type: ignore[call-arg]
        shared._node_id_to_faiss_id_map = store._node_id_to_faiss_id_map
        shared._faiss_id_to_node_id_map = store._faiss_id_to_node_id_map
        return shared

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Add nodes that have embeddings; returns their ids."""
        if not nodes:
            return []
        first = max(self._faiss_id_to_node_id_map, default=-1) + 1
        ids = [node.node_id for node in nodes]
        vectors = np.array([node.get_embedding() for node in nodes], dtype=np.float32)
        self._faiss_index.add_with_ids(vectors, np.arange(first, first + len(nodes)))
        self._faiss_id_to_node_id_map.update(enumerate(ids, first))
        self._node_id_to_faiss_id_map.update({node_id: n for n, node_id in enumerate(ids, first)})
        return ids

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nearest nodes, of those in `query.node_ids` if they are given."""
        if query.node_ids is None:
            return super().query(query, **kwargs)
        numbers = self._node_id_to_faiss_id_map
        allowed = np.array([numbers[i] for i in query.node_ids if i in numbers], np.int64)
        if not len(allowed):
            return VectorStoreQueryResult(ids=[], similarities=[])
        embedding = np.array([query.query_embedding], dtype=np.float32)
        count = min(query.similarity_top_k, len(allowed))
        scores, found = self._faiss_index.search(
            embedding, count, params=_only(self._faiss_index, allowed)
        )
        names = self._faiss_id_to_node_id_map
        pairs = [
            (names[n], s)
            for n, s in zip(found[0].tolist(), scores[0].tolist(), strict=True)
            if n >= 0
        ]
        return VectorStoreQueryResult(ids=[i for i, _ in pairs], similarities=[s for _, s in pairs])


def _only(index: Any, ids: NDArray[np.int64]) -> Any:
    """Search parameters of an `IndexIDMap2` that look among some of its ids alone."""
    make: Any = faiss  # its stubs do not know the arguments of its parameters
    inner = faiss.downcast_index(index.index)
    if not isinstance(inner, faiss.IndexPreTransform):
        return make.SearchParameters(sel=faiss.IDSelectorBatch(ids))
    # Behind a transformation, a selector is not translated: it must name places.
    places = np.flatnonzero(np.isin(faiss.vector_to_array(index.id_map), ids))
    chosen = make.SearchParameters(sel=faiss.IDSelectorBatch(places))
    return make.SearchParametersPreTransform(index_params=chosen)


def deletable(store: BasePydanticVectorStore) -> BasePydanticVectorStore:
    """The store itself; for a `FaissMapVectorStore`, a `FlatStore` over its vectors."""
    if isinstance(store, FaissMapVectorStore) and not isinstance(store, FlatStore):
        return FlatStore.over(store)
    return store


def vector_index(storage: StorageContext, **kwargs: Any) -> VectorStoreIndex:
    """LlamaIndex's index. It is given nodes and questions with embeddings, so it has no model."""
    return VectorStoreIndex(
        storage_context=storage,
        embed_model=MockEmbedding(embed_dim=1),
        store_nodes_override=True,
        **kwargs,
    )


def empty_index(dimension: int, vector_store: BasePydanticVectorStore | None) -> VectorStoreIndex:
    """LlamaIndex's index of nothing.

    Args:
        dimension: of the vectors.
        vector_store: the caller's; `None` is a `FlatStore`.
    """
    vectors = FlatStore.empty(dimension) if vector_store is None else vector_store
    return vector_index(StorageContext.from_defaults(vector_store=deletable(vectors)), nodes=[])


def read_index(
    folder: IndexFolder, vector_store: BasePydanticVectorStore | None
) -> VectorStoreIndex:
    """LlamaIndex's index of what is in a folder.

    Args:
        folder: the files.
        vector_store: the caller's; `None` reads the vectors in the folder.

    Raises:
        ZtokError: a file is missing or damaged.
    """
    path = str(folder.index)
    try:
        with folder.locked(is_reading=True):
            check_digests(folder.index)
            vectors = FlatStore.from_persist_dir(path) if vector_store is None else vector_store
            storage = StorageContext.from_defaults(
                docstore=SimpleDocumentStore.from_persist_dir(path),
                index_store=SimpleIndexStore.from_persist_dir(path),
                vector_store=deletable(vectors),
            )
        (struct,) = storage.index_store.index_structs()
        return vector_index(storage, index_struct=struct)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SyntaxError) as error:
        raise ZtokError(
            f"the index {folder.path} is damaged ({error}); build it again from its documents."
        ) from error
