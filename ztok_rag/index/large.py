"""An index whose text and vectors stay on disk, or in stores of the caller's."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core import Document
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from ztok_rag.errors import ZtokError
from ztok_rag.index.catalog import (
    CATALOG,
    Catalog,
    Chunk,
    Rows,
    node_from_json,
    without_vector,
)
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.corpus import Corpus, asked, ids_of, matched
from ztok_rag.index.documents import KnownDocument, is_random, source_of
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.holding import Holding
from ztok_rag.index.lance import LanceStore
from ztok_rag.index.segments import remove_segments
from ztok_rag.storage.store import ZStore

_VECTORS = "vectors"
_FEW = 10_000  # chunks that are named to LanceDB; where more pass, what it finds is looked through
_TRIES = 3
_TEXTS_AT_ONCE = 1000  # that are pinned or unpinned by one call


class LargeContents(Corpus):
    """Documents in a catalog on disk, and vectors in a vector store.

    A change appends. The commit of the catalog is its commit point: it names the version of the
    vectors that belongs to it, and searches read that version, so what a killed change has left
    is not seen. The next change undoes it. Nothing is held in memory, so processes that share a
    folder see each other's changes.
    """

    def __init__(
        self,
        folder: IndexFolder,
        manifest: Manifest,
        store: ZStore,
        *,
        files: Path | None = None,
        docstore: BaseDocumentStore | None = None,
        vector_store: BasePydanticVectorStore | None = None,
    ) -> None:
        """Open one.

        Args:
            folder: of the index.
            manifest: the settings.
            store: the Z-tokens.
            files: folder of catalog and vectors, where it is not yet that of the index.
            docstore: the caller's, if the text is there.
            vector_store: the caller's, if the vectors are there.

        Raises:
            ZtokError: LanceDB is needed and not installed, or a file is missing or damaged.
        """
        self.folder = folder
        self.manifest = manifest
        self.store = store
        self.holding = Holding(folder, store)
        self.docstore = docstore
        files = folder.index if files is None else files
        self._catalog = Catalog(files / CATALOG)
        self._lance = None if vector_store is not None else LanceStore(files / _VECTORS)
        self._vectors = vector_store
        try:
            with self._catalog.reading() as rows:
                if self._lance is not None:
                    self._lance.at(rows.state().vectors)
        except (ZtokError, OSError, ValueError, RuntimeError) as error:
            raise ZtokError(
                f"the index {folder.path} is damaged ({error}); build it again from its documents."
            ) from error

    @classmethod
    def make(
        cls,
        files: Path,
        folder: IndexFolder,
        manifest: Manifest,
        store: ZStore,
        *,
        docstore: BaseDocumentStore | None,
        vector_store: BasePydanticVectorStore | None,
    ) -> LargeContents:
        """An empty one, with its files in the folder `files`."""
        files.mkdir()
        if vector_store is None:
            LanceStore.make(files / _VECTORS, manifest.embed_dimension)
        catalog = Catalog.make(files / CATALOG)
        if vector_store is None:
            with catalog.writing() as rows:
                rows.note_vectors(LanceStore(files / _VECTORS).version)
        return cls(
            folder, manifest, store, files=files, docstore=docstore, vector_store=vector_store
        )

    @property
    def vector_store(self) -> BasePydanticVectorStore:
        store = self._lance or self._vectors
        assert store is not None
        return store

    @property
    def document_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._catalog.document_ids()))

    @property
    def document_count(self) -> int:
        with self._catalog.reading() as rows:
            return rows.state().documents

    @property
    def chunk_count(self) -> int:
        with self._catalog.reading() as rows:
            return rows.state().chunks

    def has_document(self, doc_id: str) -> bool:
        with self._catalog.reading() as rows:
            return rows.has_document(doc_id)

    def known(self, documents: Collection[Document]) -> dict[str, KnownDocument]:
        unnamed = [doc for doc in documents if is_random(doc.doc_id)]
        sources = (source_of(doc.metadata) for doc in unnamed)
        with self._catalog.reading() as rows:
            return rows.known(
                (doc.doc_id for doc in documents),
                (doc.hash for doc in unnamed),
                (source for source in sources if source is not None),
            )

    def texts(self) -> Iterator[str]:
        for chunk_id, node in self._catalog.chunk_ids():
            own = self._from_docstore(chunk_id) if node is None else node_from_json(node)
            if own is not None:
                yield chunk_text(own)

    # -- asking

    def search(self, query: VectorStoreQuery, **arguments: Any) -> list[NodeWithScore]:
        for attempt in range(_TRIES):
            with self._catalog.reading() as rows:
                revision = rows.state().revision
                try:
                    if self._lance is None:
                        return self._search_theirs(rows, query, arguments)
                    return self._search_lance(rows, query, arguments)
                except (OSError, RuntimeError) as error:
                    failed = error
            # Meanwhile, optimize() may have deleted the files that this search was reading.
            with self._catalog.reading() as rows:
                if rows.state().revision == revision or attempt == _TRIES - 1:
                    break
        raise ZtokError(
            f"the vectors of the index {self.folder.path} cannot be searched ({failed}); load it "
            "again, and if that does not help, build it again from its documents."
        ) from failed

    def _search_theirs(
        self, rows: Rows, query: VectorStoreQuery, arguments: Mapping[str, Any]
    ) -> list[NodeWithScore]:
        return self._matched(rows, query, asked(self.vector_store, query, arguments))

    def _search_lance(
        self, rows: Rows, query: VectorStoreQuery, arguments: Mapping[str, Any]
    ) -> list[NodeWithScore]:
        """Search our vectors; conditions are looked up in the catalog."""
        state = rows.state()
        plain = replace(query, filters=None, doc_ids=None, node_ids=None)
        arguments = {"version": state.vectors, **arguments}
        if query.filters is None and query.doc_ids is None and query.node_ids is None:
            return self._matched(rows, query, asked(self.vector_store, plain, arguments))
        try:
            allowed = self._allowed(rows, query)
            if allowed is not None:
                few = replace(plain, node_ids=allowed)
                # An index of vectors reads some of its parts, in which they may not be.
                found = asked(self.vector_store, few, {"exact": True, **arguments})
                return self._matched(rows, query, found)
            return self._look_through(rows, query, plain, arguments, state.chunks)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ZtokError(f"the filters cannot be heeded ({error}); change them.") from error

    def _allowed(self, rows: Rows, query: VectorStoreQuery) -> list[str] | None:
        """Ids of the chunks that a query's conditions let through; `None` if they are many."""
        if query.node_ids is not None:
            passes = _condition(query)
            found = rows.chunks(query.node_ids)
            return [i for i, chunk in found.items() if passes(chunk)]
        passing: Iterator[tuple[str, Mapping[str, Any]]]
        only_metadata = _condition(replace(query, doc_ids=None))
        if query.doc_ids is not None:
            known = rows.known(query.doc_ids, (), ()).items()
            passing = ((i, own.metadata) for i, own in known)
        else:
            passing = rows.metadata()
        allowed: list[str] = []
        for doc_id, metadata in passing:
            if only_metadata(Chunk("", doc_id, metadata, None)):
                allowed += rows.chunk_ids_of(doc_id)
                if len(allowed) > _FEW:
                    return None
        return allowed

    def _look_through(
        self,
        rows: Rows,
        query: VectorStoreQuery,
        plain: VectorStoreQuery,
        arguments: Mapping[str, Any],
        chunks: int,
    ) -> list[NodeWithScore]:
        """Ask for more and more chunks, until enough of them pass the query's conditions."""
        passes = _condition(query)
        wanted = 4 * query.similarity_top_k
        while True:
            found = asked(self.vector_store, replace(plain, similarity_top_k=wanted), arguments)
            ids = ids_of(found)
            held = rows.chunks(ids)
            scores = dict(zip(ids, found.similarities or [], strict=True))
            passing = [i for i in ids if i in held and passes(held[i])][: query.similarity_top_k]
            if len(passing) == query.similarity_top_k or wanted >= chunks:
                result = replace(found, ids=passing, similarities=[scores[i] for i in passing])
                return matched(self, query, result, [self._node(held[i]) for i in passing])
            wanted *= 4
            arguments = {**arguments, "exact": True}

    def _matched(
        self, rows: Rows, query: VectorStoreQuery, found: VectorStoreQueryResult
    ) -> list[NodeWithScore]:
        """The chunks that were found, with their nodes."""
        ids = ids_of(found)
        chunks = rows.chunks(ids)
        return matched(self, query, found, [self._node(chunks.get(i)) for i in ids])

    def _node(self, chunk: Chunk | None) -> BaseNode | None:
        if chunk is None or chunk.node is not None:
            return None if chunk is None else chunk.node
        return self._from_docstore(chunk.id)

    def _from_docstore(self, chunk_id: str) -> BaseNode | None:
        if self.docstore is None:
            return None
        return self.docstore.get_document(chunk_id, raise_error=False)

    # -- changing

    def change(
        self, nodes: Sequence[BaseNode], hashes: Mapping[str, str], remove: Sequence[str]
    ) -> None:
        with self.folder.changing(self.manifest.revision):
            self._change(nodes, hashes, remove)
        remove_segments(self.folder.segments)

    def fill(self, nodes: Sequence[BaseNode], hashes: Mapping[str, str]) -> None:
        """Add chunks to an index that is being built, and is not in its folder yet."""
        self._change(nodes, hashes, ())

    def close_up(self) -> None:
        """Leave files that can be moved."""
        self._catalog.close_up()

    def _change(
        self, nodes: Sequence[BaseNode], hashes: Mapping[str, str], remove: Sequence[str]
    ) -> None:
        new = {chunk_text(node) for node in nodes}
        self.holding.add(new)
        try:
            forgotten = self._write(nodes, hashes, remove, new)
        except BaseException:
            with suppress(ZtokError), self._catalog.reading() as rows:
                self.holding.release(rows.without(new))
            raise
        if forgotten:
            self.holding.release(forgotten)
        if remove and not self._catalog.empty_log():
            warnings.warn(
                f"the log of the index {self.folder.path} is in use; what was deleted stays in it "
                "until the next deletion, or until every process has closed the index.",
                stacklevel=4,
            )

    def _write(
        self,
        nodes: Sequence[BaseNode],
        hashes: Mapping[str, str],
        remove: Sequence[str],
        new: set[str],
    ) -> set[str]:
        """Write a change whose texts `new` are pinned; the texts that the index has no more."""
        self._undo_what_was_not_committed()
        with self._catalog.writing() as rows:
            gone = [chunk_id for doc_id in remove for chunk_id in rows.chunk_ids_of(doc_id)]
            forgotten = {
                chunk_text(node)
                for chunk in rows.chunks(rows.with_texts_only_in(remove)).values()
                if (node := self._node(chunk)) is not None
            } - new
            rows.remove(remove)
            # The catalog refuses a document that is there already before any vector is written.
            rows.add(nodes, hashes, keeps=self.docstore is None)
            self._change_vectors(nodes, remove, gone)
            if self._lance is not None:
                rows.note_vectors(self._lance.version)
            if self.docstore is not None and nodes:
                self.docstore.add_documents([without_vector(node) for node in nodes])
            # A kill before the commit leaves documents whose Z-tokens are made again, never
            # Z-tokens without a document.
            if forgotten:
                self.holding.delete(forgotten)
        if self.docstore is not None:
            # A chunk has the same id when the same document comes again.
            for chunk_id in set(gone) - {node.node_id for node in nodes}:
                self.docstore.delete_document(chunk_id, raise_error=False)
        return forgotten

    def _change_vectors(
        self, nodes: Sequence[BaseNode], remove: Sequence[str], gone: list[str]
    ) -> None:
        try:
            if self._lance is not None:
                self._lance.delete_nodes(gone)
                self._lance.add(nodes)
                return
            for doc_id in remove:
                self.vector_store.delete(doc_id)
            if nodes:
                self.vector_store.add(list(nodes))
        except NotImplementedError as error:
            raise ZtokError(
                f"the {self.vector_store.class_name()} cannot delete documents; build the index "
                "again with a vector store that can."
            ) from error
        except (OSError, RuntimeError) as error:
            raise ZtokError(
                f"the vectors of the index {self.folder.path} cannot be written ({error}); it "
                "stays as it was."
            ) from error

    def _undo_what_was_not_committed(self) -> None:
        """Bring the vectors back to the version that the catalog names."""
        if self._lance is None:
            return
        with self._catalog.reading() as rows:
            committed = rows.state().vectors
        version = self._lance.rewind(committed)
        if version != committed:
            with self._catalog.writing() as rows:
                rows.note_vectors(version)

    def commit(self, manifest: Manifest) -> None:
        revised = manifest.revised()
        with self.folder.changing(self.manifest.revision):
            self.folder.write(revised)
        self.manifest = revised

    def optimize(self) -> None:
        if self._lance is None:
            return
        with self.folder.changing(self.manifest.revision):
            self._undo_what_was_not_committed()
            with self._catalog.reading() as rows:
                trained = rows.state().trained
            trained = self._lance.optimize(trained)
            with self._catalog.writing() as rows:
                rows.note_vectors(self._lance.version, trained)
            self._lance.purge()
            with self._catalog.writing() as rows:
                rows.note_vectors(self._lance.version)
            self._catalog.empty_log()


def _condition(query: VectorStoreQuery) -> Any:
    """Whether a `Chunk` passes the conditions of a query."""
    doc_ids = None if query.doc_ids is None else set(query.doc_ids)
    node_ids = None if query.node_ids is None else set(query.node_ids)

    def passes(chunk: Chunk) -> bool:
        if doc_ids is not None and chunk.doc_id not in doc_ids:
            return False
        if node_ids is not None and chunk.id not in node_ids:
            return False
        return build_metadata_filter_fn(lambda _: chunk.metadata, query.filters)("")

    return passes
