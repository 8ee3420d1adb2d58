"""What a `ZTokenIndex` holds, in memory and on disk, with atomic changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from llama_index.vector_stores.faiss import FaissMapVectorStore  # type: ignore[import-untyped]

from ztok_rag.errors import ZtokError
from ztok_rag.forks import ForkSafeLock
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.corpus import Corpus, asked, ids_of, matched
from ztok_rag.index.documents import KnownDocument
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.former import former_texts
from ztok_rag.index.holding import Holding
from ztok_rag.index.segments import remove_segments
from ztok_rag.index.vectors import FlatStore, read_index
from ztok_rag.storage.store import ZStore


class Contents(Corpus):
    """Documents in memory, and on disk in files that each change writes anew.

    After an error, memory is read again from the disk.

    Attributes:
        folder: the files.
        manifest: the settings that the files were written with.
        store: the Z-tokens.
        holding: the share that the index has in the store.
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
        self.holding = Holding(folder, store)
        self._index = index
        self._state_lock = ForkSafeLock()

    @property
    def document_ids(self) -> tuple[str, ...]:
        """Ids of the documents, sorted."""
        with self._state_lock:
            return tuple(sorted(self._index.docstore.get_all_ref_doc_info() or {}))

    @property
    def document_count(self) -> int:
        with self._state_lock:
            return len(self._index.docstore.get_all_ref_doc_info() or {})

    @property
    def chunk_count(self) -> int:
        with self._state_lock:
            return len(self._index.docstore.docs)

    def has_document(self, doc_id: str) -> bool:
        with self._state_lock:
            return self._index.docstore.get_ref_doc_info(doc_id) is not None

    def known(self, documents: Collection[Document]) -> dict[str, KnownDocument]:
        with self._state_lock:
            docstore = self._index.docstore
            return {
                doc_id: KnownDocument(docstore.get_document_hash(doc_id), info.metadata)
                for doc_id, info in (docstore.get_all_ref_doc_info() or {}).items()
            }

    def texts(self) -> Iterator[str]:
        with self._state_lock:
            return iter([chunk_text(node) for node in self._index.docstore.docs.values()])

    @property
    def vector_store(self) -> BasePydanticVectorStore:
        return self._index.vector_store

    def search(self, query: VectorStoreQuery, **arguments: Any) -> list[NodeWithScore]:
        with self._state_lock:
            docstore, places = self._index.docstore, self._index.index_struct.nodes_dict
            if isinstance(self.vector_store, FlatStore):
                query = self._with_node_ids(query)
            found = asked(self.vector_store, query, arguments)
            nodes = [
                docstore.get_document(places.get(i, i), raise_error=False) for i in ids_of(found)
            ]
        return matched(self, query, found, nodes)

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
        self, nodes: Sequence[BaseNode], hashes: Mapping[str, str], remove: Sequence[str]
    ) -> None:
        new = {chunk_text(node) for node in nodes}
        gone = self._texts_only_in(remove) - new
        self.holding.add(new)
        with self._state_lock:
            try:
                self._remove_documents(remove)
                self._insert(nodes, hashes)
                self.commit(self.manifest, forget=gone)
            except BaseException:
                self._reload()
                with suppress(ZtokError):  # else what the index on the disk holds is not known
                    self.holding.release(new - set(former_texts(self.folder, self.manifest)))
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
                self.holding.delete(forget)
        self.manifest = revised
        if forget:
            self.holding.release(forget)
        # Of use for this build only, and they hold what the texts say.
        remove_segments(self.folder.segments)

    def optimize(self) -> None:
        """Nothing: each change writes the files anew, and searches are in memory."""

    def _insert(self, nodes: Sequence[BaseNode], hashes: Mapping[str, str]) -> None:
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
