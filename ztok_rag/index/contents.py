"""What a `ZTokenIndex` holds, in memory and on disk, with atomic changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from llama_index.vector_stores.faiss import FaissMapVectorStore  # type: ignore[import-untyped]

from ztok_rag.errors import ZtokError
from ztok_rag.forks import ForkSafeLock
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.documents import KnownDocument
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.segments import remove_segments
from ztok_rag.index.vectors import FlatStore, read_index
from ztok_rag.storage.store import ZStore


class Contents:
    """The documents of one index, in memory and on disk.

    A change is atomic: after an error or a kill, the disk holds the index from before or after it.
    After an error, memory is read again from the disk. Threads may search while another changes
    the index.

    Attributes:
        folder: the files.
        manifest: the settings that the files were written with.
        store: the Z-tokens.
    """

    def __init__(
        self, folder: IndexFolder, manifest: Manifest, index: VectorStoreIndex, store: ZStore
    ) -> None:
        """Set up.

        Args:
            folder: the files.
            manifest: the settings.
            index: the documents in memory, which may be newer than the files.
            store: the Z-tokens.
        """
        self.folder = folder
        self.manifest = manifest
        self.store = store
        self._index = index
        self._state_lock = ForkSafeLock()

    @property
    def document_ids(self) -> tuple[str, ...]:
        """Ids of the documents, sorted."""
        with self._state_lock:
            return tuple(sorted(self._index.docstore.get_all_ref_doc_info() or {}))

    def known(self) -> dict[str, KnownDocument]:
        """The documents by their ids."""
        with self._state_lock:
            docstore = self._index.docstore
            return {
                doc_id: KnownDocument(docstore.get_document_hash(doc_id), info.metadata)
                for doc_id, info in (docstore.get_all_ref_doc_info() or {}).items()
            }

    def texts(self) -> list[str]:
        """The text of every chunk."""
        with self._state_lock:
            return [chunk_text(node) for node in self._index.docstore.docs.values()]

    @property
    def vector_store(self) -> BasePydanticVectorStore:
        """Where the vectors are."""
        return self._index.vector_store

    def search(self, query: VectorStoreQuery, **arguments: Any) -> list[NodeWithScore]:
        """The best chunks for a query with an embedding, best first.

        Args:
            query: what is asked of the vector store.
            arguments: further ones of its `query`.

        Raises:
            ZtokError: the vector store does not support what is asked.
        """
        with self._state_lock:
            docstore, places = self._index.docstore, self._index.index_struct.nodes_dict
            if isinstance(self.vector_store, FlatStore):
                query = self._with_node_ids(query)
            try:
                found = self.vector_store.query(query, **arguments)
            except (NotImplementedError, ValueError, TypeError) as error:
                raise ZtokError(
                    f"the {self.vector_store.class_name()} cannot search as it is asked to "
                    f"({error}); change the retriever's arguments, or build the index with "
                    "another vector store."
                ) from error
            ids = found.ids if found.ids is not None else [n.node_id for n in found.nodes or ()]
            nodes = [docstore.get_document(places.get(i, i), raise_error=False) for i in ids]
        present = [node for node in nodes if node is not None]
        if len(present) < len(nodes):
            warnings.warn(
                f"the {self.vector_store.class_name()} found {len(nodes) - len(present)} chunks "
                f"that are not of the index {self.folder.path}; they are left out.",
                stacklevel=4,
            )
        for name, asked, got in (
            ("doc_ids", query.doc_ids, {node.ref_doc_id for node in present}),
            ("node_ids", query.node_ids, {node.node_id for node in present}),
        ):
            if asked is not None and not got <= set(asked):
                raise ZtokError(
                    f"the {self.vector_store.class_name()} does not heed {name!r}; leave it out, "
                    "or build the index with a vector store that does."
                )
        scores: list[float | None] = [*(found.similarities or [])] or [None] * len(nodes)
        return [
            NodeWithScore(node=node, score=None if score is None else float(score))
            for node, score in zip(nodes, scores, strict=True)
            if node is not None
        ]

    def _with_node_ids(self, query: VectorStoreQuery) -> VectorStoreQuery:
        """The query with its conditions as ids of chunks, which are all that FAISS heeds.

        Raises:
            ZtokError: a filter has an operator or a value that LlamaIndex does not know.
        """
        if query.filters is None and query.doc_ids is None and query.node_ids is None:
            return query
        nodes = self._index.docstore.docs
        try:
            passes = build_metadata_filter_fn(lambda i: nodes[i].metadata, query.filters)
            allowed = [
                i
                for i, node in nodes.items()
                if (query.node_ids is None or i in query.node_ids)
                and (query.doc_ids is None or node.ref_doc_id in query.doc_ids)
                and passes(i)
            ]
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ZtokError(f"the filters cannot be heeded ({error}); change them.") from error
        return replace(query, filters=None, doc_ids=None, node_ids=allowed)

    def change(
        self, nodes: Sequence[BaseNode], hashes: dict[str, str], remove: Sequence[str]
    ) -> None:
        """Delete documents, then add chunks.

        Args:
            nodes: chunks with embeddings, of the documents to add; their Z-tokens are in the store.
            hashes: hash of each of these documents, by id.
            remove: ids of the documents to delete.
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

        The Z-tokens of the texts `forget` are deleted just before the commit point. A kill between
        the two leaves documents whose Z-tokens are made again, never Z-tokens without a document.

        Args:
            manifest: settings of the index.
            forget: texts whose Z-tokens are deleted.
        """
        # A new build replaces any index that is there.
        expected = self.manifest.revision or None
        revised = manifest.revised()
        storage = self._index.storage_context
        own = not manifest.vector_store
        with self.folder.replacing(expected, revised) as target:
            # Of the vector stores, only ours is written: the others are empty or the caller's.
            kept = {"default": storage.vector_store} if own else {}
            replace(storage, vector_stores=kept).persist(target)
            if forget := list(forget):
                self.store.delete(forget)
        self.manifest = revised
        # Of use for this build only, and they hold what the texts say.
        remove_segments(self.folder.segments)

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
        """Texts of chunks that are in these documents and in no others."""
        if not doc_ids:
            return set()
        inside: set[str] = set()
        outside: set[str] = set()
        with self._state_lock:
            for node in self._index.docstore.docs.values():
                (inside if node.ref_doc_id in doc_ids else outside).add(chunk_text(node))
        return inside - outside

    def _reload(self) -> None:
        """Read the index again from the disk, if it is there."""
        if self.folder.exists() and self.manifest.revision:
            self.manifest = self.folder.read()
            vectors = self._index.vector_store if self.manifest.vector_store else None
            self._index = read_index(self.folder, vectors)
