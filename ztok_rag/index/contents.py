"""What a `ZTokenIndex` holds, in memory and on disk, changed as a whole."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.faiss import FaissMapVectorStore  # type: ignore[import-untyped]

from ztok_rag.errors import ZtokError
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.vectors import read_index
from ztok_rag.storage.store import ZStore


class Contents:
    """The documents of one index, in memory and on disk.

    A change is made whole or not at all: after an error, memory is read again from the disk, and
    the disk holds what was there before or after. Threads may read while another changes it.

    Attributes:
        folder: the files.
        manifest: the settings that the files were written with.
        store: the Z-tokens.
    """

    def __init__(
        self, folder: IndexFolder, manifest: Manifest, index: VectorStoreIndex, store: ZStore
    ) -> None:
        """Take over what a folder holds; `index` may be newer than its files."""
        self.folder = folder
        self.manifest = manifest
        self.store = store
        self._index = index
        self._state_lock = threading.RLock()

    @property
    def document_ids(self) -> tuple[str, ...]:
        """Ids of the documents, in order of the alphabet."""
        with self._state_lock:
            return tuple(sorted(self._index.docstore.get_all_ref_doc_info() or {}))

    def hash_of(self, doc_id: str) -> str | None:
        """Of a document's text and metadata."""
        return self._index.docstore.get_document_hash(doc_id)

    def texts(self) -> list[str]:
        """The text of every chunk."""
        with self._state_lock:
            return [chunk_text(node) for node in self._index.docstore.docs.values()]

    def search(self, query: QueryBundle, top_k: int) -> list[NodeWithScore]:
        """The `top_k` best chunks for a question with an embedding, best first."""
        with self._state_lock:
            docstore, places = self._index.docstore, self._index.index_struct.nodes_dict
            found = self._index.vector_store.query(
                VectorStoreQuery(
                    query_embedding=query.embedding,
                    similarity_top_k=top_k,
                    query_str=query.query_str,
                )
            )
            ids = found.ids if found.ids is not None else [n.node_id for n in found.nodes or ()]
            nodes = [docstore.get_document(places.get(i, i), raise_error=False) for i in ids]
        scores: list[float | None] = [*(found.similarities or [])] or [None] * len(nodes)
        return [
            NodeWithScore(node=node, score=None if score is None else float(score))
            for node, score in zip(nodes, scores, strict=True)
            if node is not None
        ]

    def change(
        self, nodes: Sequence[BaseNode], hashes: dict[str, str], remove: Sequence[str]
    ) -> None:
        """Delete the documents `remove`, then add chunks that have embeddings.

        Args:
            nodes: chunks of the documents that are added; their Z-tokens are in the store.
            hashes: of these documents, by their ids.
            remove: ids of documents.
        """
        gone = self._texts_only_in(remove) - {chunk_text(node) for node in nodes}
        with self._state_lock:
            try:
                self._remove_documents(remove)
                self._insert(nodes, hashes)
                self.commit(self.manifest, forget=gone)
            except BaseException:
                self._reload()
                raise

    def commit(self, manifest: Manifest, *, forget: Iterable[str] = ()) -> None:
        """Write the index to disk.

        The Z-tokens of the texts `forget` go once the rest is written and before it holds: a kill
        between leaves a document that is compressed again, never Z-tokens without a document.

        Args:
            manifest: its settings.
            forget: texts whose Z-tokens are deleted.
        """
        # A fresh build replaces whatever index is there.
        expected = self.manifest.revision or None
        revised = manifest.revised()
        storage = self._index.storage_context
        own = not manifest.vector_store
        with self.folder.replacing(expected, revised) as target:
            # The image store that LlamaIndex adds stays empty, and others are the caller's.
            kept = {"default": storage.vector_store} if own else {}
            replace(storage, vector_stores=kept).persist(target)
            if forget := list(forget):
                self.store.delete(forget)
        self.manifest = revised

    def _insert(self, nodes: Sequence[BaseNode], hashes: dict[str, str]) -> None:
        self._index.insert_nodes(nodes)
        for doc_id, content_hash in hashes.items():
            self._index.docstore.set_document_hash(doc_id, content_hash)

    def _remove_documents(self, doc_ids: Sequence[str]) -> None:
        vectors, docstore = self._index.vector_store, self._index.docstore
        gone: set[str] = set()
        for doc_id in doc_ids:
            info = docstore.get_ref_doc_info(doc_id)
            node_ids = [] if info is None else list(info.node_ids)
            gone.update(node_ids)
            try:
                if isinstance(vectors, FaissMapVectorStore):
                    vectors.delete_nodes(node_ids)
                else:
                    vectors.delete(doc_id)
            except NotImplementedError as error:
                raise ZtokError(
                    f"the {vectors.class_name()} cannot delete documents; build the index again "
                    "with a vector store that can, such as FaissMapVectorStore."
                ) from error
            docstore.delete_ref_doc(doc_id, raise_error=False)
        struct = self._index.index_struct
        struct.nodes_dict = {i: node for i, node in struct.nodes_dict.items() if node not in gone}
        self._index.storage_context.index_store.add_index_struct(struct)

    def _texts_only_in(self, doc_ids: Sequence[str]) -> set[str]:
        """The texts of the chunks of these documents that no other document has."""
        if not doc_ids:
            return set()
        inside: set[str] = set()
        outside: set[str] = set()
        with self._state_lock:
            for node in self._index.docstore.docs.values():
                (inside if node.ref_doc_id in doc_ids else outside).add(chunk_text(node))
        return inside - outside

    def _reload(self) -> None:
        """Go back to what is on disk, if anything is."""
        if self.folder.exists() and self.manifest.revision:
            self.manifest = self.folder.read()
            vectors = self._index.vector_store if self.manifest.vector_store else None
            self._index = read_index(self.folder, vectors)
