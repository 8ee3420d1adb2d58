"""`ZTokenIndex`: documents, their vectors and their Z-tokens in one folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core import Document
from llama_index.core.embeddings import BaseEmbedding

from ztok_rag.errors import ZtokError
from ztok_rag.forks import ForkSafeLock
from ztok_rag.index.asking import Asking
from ztok_rag.index.building import NewFiles, build_large
from ztok_rag.index.checks import check_embedding, check_settings
from ztok_rag.index.contents import Contents
from ztok_rag.index.corpus import Corpus
from ztok_rag.index.distributed import RayEngine, make_engine
from ztok_rag.index.documents import (
    check_documents,
    has_words,
    name_of,
    warn_left_out,
)
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.former import has_documents, would_empty
from ztok_rag.index.holding import is_shared, store_to_build, store_to_load
from ztok_rag.index.ingestion import Ingestion
from ztok_rag.index.large import LargeContents
from ztok_rag.index.refresh import RefreshResult, plan_refresh
from ztok_rag.index.stats import IndexStats, count
from ztok_rag.index.stores import Stores, TextGiven, VectorsGiven, theirs
from ztok_rag.index.vectors import empty_index, read_index
from ztok_rag.inputs import as_iterator
from ztok_rag.llamaindex.embedding import default_embedding, embedding_dimension, embedding_name
from ztok_rag.llamaindex.settings import user_embedding
from ztok_rag.storage.defaults import default_compressor
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


class ZTokenIndex(Asking):
    """Documents that are searched by embeddings of their text, and read as Z-tokens.

    An index is made by `build` or `load`. A chunk is compressed when its document is inserted, so
    no query waits for compression. A change is on disk when its method returns. It is atomic:
    after an error or a kill, the folder holds the index from before or after it. The exception is
    a store of the caller's own: what is in it is the caller's to keep and to restore.

    Threads may query an object while another thread changes it. Processes may share a folder; a
    process cannot change an index that another has changed since, and is told to load it again. Of
    an index with text and vectors on disk, processes see each other's changes and take turns.
    """

    def __reduce__(self) -> tuple[Callable[..., ZTokenIndex], tuple[Any, ...]]:
        """A copy, also one in another process, is the same folder loaded again.

        Raises:
            ZtokError: text or vectors are in a store of the caller's.
        """
        if elsewhere := theirs(self.contents.manifest):
            raise ZtokError(
                f"the index {self.path} has {elsewhere} of yours, and cannot be copied or sent to "
                "another process; load it there."
            )
        store = self.store if self.contents.holding.is_shared else None
        return _load, (self.path, self._embed_model, self._compressor, store)

    def __init__(
        self,
        contents: Corpus,
        *,
        embed_model: BaseEmbedding | None,
        compressor: ZCompressor | None,
    ) -> None:
        """Use `build` or `load` instead."""
        self.contents = contents
        self._embed_model = embed_model
        self._compressor = compressor
        self._change_lock = ForkSafeLock()
        self._model_lock = ForkSafeLock()

    # -- making one

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        path: str | Path,
        *,
        rate: float = 4.0,
        chunk_size: int = 256,
        chunk_overlap: int = 0,
        embed_model: BaseEmbedding | None = None,
        compressor: ZCompressor | None = None,
        vector_store: VectorsGiven = None,
        docstore: TextGiven = None,
        store: ZStore | str | Path | None = None,
        show_progress: bool = False,
        allow_empty: bool = False,
        engine: str | RayEngine | None = None,
    ) -> ZTokenIndex:
        """Index documents. An index in the folder is replaced; a folder of other files is refused.

        The new index is whole on disk before anything of the one it replaces is deleted.
        A build that was killed can be repeated, and does not compress the same chunks again.

        Args:
            documents: any number, each with an id of its own; read once, and with `docstore`
                not held in memory. Those without words are
                left out, with a warning that names them. Metadata that JSON does not hold, such as
                dates, are kept as the text that LlamaIndex shows of them.
            path: folder of the index, made if needed.
            rate: source tokens per Z-token, 1 to 64.
            chunk_size: longest chunk, in tokens of the base LLM, metadata included.
            chunk_overlap: tokens that neighbouring chunks share.
            embed_model: `None` is `Settings.embed_model` where it was set, else
                `ztok_rag.default_embedding()`.
            compressor: `None` is the default one.
            vector_store: `"lance"` keeps vectors in the folder, in LanceDB, and none in memory; or
                it is an empty LlamaIndex vector store that the caller keeps. `None` is a FAISS
                store in the folder, exact and by cosine, held in memory.
            docstore: `"sqlite"` keeps text in the folder, in SQLite, and none in memory; or it is
                an empty LlamaIndex document store that the caller keeps. `None` is files in the
                folder, held in memory. With `docstore`, `vector_store` is `"lance"` unless told
                otherwise, and with `vector_store="lance"`, `docstore` is `"sqlite"`.
            store: a store of Z-tokens that the index shares with others, or its folder or URL, such
                as `redis://…`; `None` is a store in the folder of the index.
            show_progress: whether to show progress bars.
            allow_empty: whether an index with documents may be replaced by one without.
            engine: `"ray"` or a `RayEngine` compresses and embeds on Ray, with the same result;
                `None` does so in this process.

        Raises:
            ZtokError: two documents have one id, metadata cannot be kept, a setting is out of
                range, the folder holds something else, the index in it would be emptied, or Ray
                is missing or fails.
        """
        workers = make_engine(engine)
        check_settings(rate, chunk_size, chunk_overlap)
        stores = Stores.to_build(docstore, vector_store)
        documents = as_iterator(documents, "documents")
        checked = None if stores.text else check_documents(documents)
        folder = IndexFolder(path)
        folder.claim()
        if checked is not None:
            if not any(map(has_words, checked)) and not allow_empty and has_documents(folder):
                raise would_empty(folder.path, "build")
            warn_left_out(document for document in checked if not has_words(document))
        compressor = compressor or default_compressor()
        embed_model = embed_model or user_embedding() or default_embedding()
        dimension = embedding_dimension(embed_model)
        opened = store_to_build(folder, store)
        manifest = Manifest(
            rate=rate,
            chunk_size=chunk_size,
            chunk_overlap=chunk_overlap,
            fingerprint=compressor.fingerprint,
            slots=compressor.slots,
            embed_model=embedding_name(embed_model),
            embed_dimension=dimension,
            vector_store=stores.vectors,
            docstore=stores.text,
            store=opened.name if is_shared(folder, opened) else "",
        )
        models: Any = {"embed_model": embed_model, "compressor": compressor}
        try:
            if checked is None:
                files = NewFiles(folder, manifest, opened, stores.docstore, stores.vector_store)
                ingestion = Ingestion(
                    manifest, compressor, embed_model, opened, workers, show_progress
                )
                large = build_large(documents, files, ingestion, allow_empty=allow_empty)
                index = cls(large, **models)
            else:
                vectors = empty_index(manifest.embed_dimension, stores.vector_store)
                index = cls(Contents(folder, manifest, vectors, opened), **models)
                worded = [document for document in checked if has_words(document)]
                index._change(add=worded, show_progress=show_progress, workers=workers)
            if checked is not None or not files.is_fresh:
                index.contents.holding.keep_only(manifest.fingerprint, index.contents.texts())
            if manifest.store:
                folder.remove_store()
        except BaseException:
            opened.close()
            raise
        return index

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        embed_model: BaseEmbedding | None = None,
        compressor: ZCompressor | None = None,
        vector_store: VectorsGiven = None,
        docstore: TextGiven = None,
        store: ZStore | str | Path | None = None,
    ) -> ZTokenIndex:
        """Open an index.

        Another checkpoint than the one that compressed the chunks gives a warning. A chunk is then
        compressed again when it is first retrieved; `recompress` does it for all.

        Args:
            path: folder that `build` wrote.
            embed_model: the model that the index was built with; `None` as in `build`.
            compressor: `None` is the default one. Default models are loaded when first needed.
            vector_store: the one of yours that was given to `build`, if any.
            docstore: the one of yours that was given to `build`, if any.
            store: the one that was given to `build`, if any, or its folder or URL.

        Raises:
            ZtokError: there is no index or it is damaged, the embedding model is another one, or
                a store of yours is missing.
        """
        folder = IndexFolder(path)
        manifest = folder.read()
        embed_model = embed_model or user_embedding()
        check_embedding(folder.path, manifest, embed_model)
        stores = Stores.to_load(folder.path, manifest, docstore, vector_store)
        opened = store_to_load(folder, manifest, store)
        contents: Corpus
        if manifest.is_large:
            contents = LargeContents(
                folder,
                manifest,
                opened,
                docstore=stores.docstore,
                vector_store=stores.vector_store,
            )
        else:
            contents = Contents(folder, manifest, read_index(folder, stores.vector_store), opened)
        if not folder.is_read_only:
            contents.holding.add_if_none(contents.texts)
        index = cls(contents, embed_model=embed_model, compressor=compressor)
        if compressor is not None:
            index._warn_if_outdated(compressor)
        return index

    def close(self) -> None:
        """Close the store's database. It opens again by itself when the index is used."""
        self.store.close()

    # -- what it is made of

    @property
    def chunk_size(self) -> int:
        """Longest chunk, in tokens of the base LLM."""
        return self.contents.manifest.chunk_size

    @property
    def is_large(self) -> bool:
        """Whether text and vectors stay on disk, or in stores of yours, and not in memory."""
        return self.contents.manifest.is_large

    @property
    def document_ids(self) -> tuple[str, ...]:
        """Ids of the documents, sorted."""
        return self.contents.document_ids

    @property
    def compressor(self) -> ZCompressor:
        """The compressor in use; the default one is loaded when first asked for."""
        with self._model_lock:
            if self._compressor is None:
                self._compressor = default_compressor()
                self._warn_if_outdated(self._compressor)
            return self._compressor

    @property
    def embed_model(self) -> BaseEmbedding:
        """The embedding model in use; the default one is loaded when first asked for."""
        with self._model_lock:
            if self._embed_model is None:
                self._embed_model = default_embedding()
            return self._embed_model

    @property
    def outdated(self) -> bool:
        """Whether the chunks were compressed by another checkpoint than the one in use."""
        return self.compressor.fingerprint != self.contents.manifest.fingerprint

    def stats(self) -> IndexStats:
        """Counts of what the index holds. No model is loaded."""
        with self._model_lock:
            loaded = self._compressor
        return count(self.contents, None if loaded is None else loaded.fingerprint)

    # -- changing it

    def insert(self, document: Document, *, show_progress: bool = False) -> None:
        """Add a document, with an id that is not in the index yet.

        Many documents are added faster by one `refresh_ref_docs`.

        Raises:
            ZtokError: the document has no words, or its id is there already.
        """
        with self._change_lock:
            (own,) = check_documents([document])
            if not has_words(own):
                raise ZtokError(f"the document {name_of(own)} has no words to index; leave it out.")
            if self.contents.has_document(own.doc_id):
                raise ZtokError(
                    f"the index {self.path} has a document {own.doc_id!r} already; use "
                    "refresh_ref_docs() to replace it."
                )
            self._change(add=[own], show_progress=show_progress)

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True) -> None:
        """Delete a document: its text, vectors and Z-tokens, in memory and on disk.

        Z-tokens of a chunk that another document holds word for word stay.

        Args:
            ref_doc_id: id of the document.
            delete_from_docstore: as of `VectorStoreIndex.delete_ref_doc`; here always true.

        Raises:
            ZtokError: the index has no document of this id, or its text would be kept.
        """
        if not delete_from_docstore:
            raise ZtokError(
                "a ZTokenIndex keeps no text of a deleted document; leave delete_from_docstore out."
            )
        with self._change_lock:
            if not self.contents.has_document(ref_doc_id):
                raise ZtokError(
                    f"the index {self.path} has no document {ref_doc_id!r}; document_ids lists "
                    "those it has."
                )
            self._change(remove=[ref_doc_id])

    def refresh_ref_docs(
        self,
        documents: Iterable[Document],
        *,
        remove_others: bool = False,
        show_progress: bool = False,
        allow_empty: bool = False,
        engine: str | RayEngine | None = None,
    ) -> RefreshResult:
        """Add documents that are new, and replace those whose text or metadata has changed.

        A document is known by its id. Readers give random ids, unless told `filename_as_id=True`;
        a document with a random id is known by the `file_path` in its metadata, and `page_label`
        if there is one, and keeps the id that the index has for it. Without a `file_path`, it is
        known by its text and metadata alone.

        A document that has no words any more is removed; a new one without is left out, with a
        warning.

        Args:
            documents: any number; read once.
            remove_others: whether to delete all other documents of the index.
            show_progress: whether to show progress bars.
            allow_empty: whether the index may end without any document.
            engine: as of `build`.

        Raises:
            ZtokError: two documents have one id, the index would be emptied, or Ray is missing or
                fails. Nothing is changed then.
        """
        workers = make_engine(engine)
        with self._change_lock:
            checked = check_documents(documents)
            others = self.document_ids if remove_others else ()
            plan = plan_refresh(checked, self.contents.known(checked), others)
            count = self.contents.document_count
            if count and not allow_empty and plan.empties(count):
                raise would_empty(self.path, "refresh_ref_docs")
            warn_left_out(plan.left_out)
            if plan.add or plan.remove:
                self._change(
                    add=plan.add,
                    remove=plan.remove,
                    show_progress=show_progress,
                    workers=workers,
                )
            return plan.result

    def recompress(self, *, rate: float | None = None, show_progress: bool = False) -> int:
        """Compress every chunk with the checkpoint in use, and delete all other Z-tokens.

        Args:
            rate: new rate of the index, in source tokens per Z-token; `None` keeps the rate.
            show_progress: whether to show a progress bar.

        Returns:
            The number of chunks that had to be compressed.

        Raises:
            ZtokError: the rate is out of range, or the folder cannot be written.
        """
        with self._change_lock:
            self.contents.folder.check_writable()
            rate = self.rate if rate is None else rate
            check_settings(rate, self.chunk_size, self.contents.manifest.chunk_overlap)
            fingerprint, slots = self.compressor.fingerprint, self.compressor.slots
            compressed = self._ingestion(None, show_progress).compress(
                self.contents.texts(), self.contents.chunk_count
            )
            self.contents.commit(
                replace(self.contents.manifest, rate=rate, fingerprint=fingerprint, slots=slots)
            )
            self.contents.holding.keep_only(fingerprint, self.contents.texts())
            return compressed

    def optimize(self) -> None:
        """Make an index with vectors in LanceDB fast to search, and its files few.

        Small files are joined, vectors are indexed from 20,000 on, and files of old versions are
        deleted. Until then a search compares the question with every new vector, and vectors of
        deleted documents stay in the files. It pays after each 100,000 chunks or so. Searches go on
        meanwhile; changes wait. Indexes that are held in memory need none of it.

        Raises:
            ZtokError: the folder cannot be written.
        """
        with self._change_lock:
            self.contents.folder.check_writable()
            self.contents.optimize()

    def _change(
        self,
        *,
        add: Sequence[Document] = (),
        remove: Sequence[str] = (),
        show_progress: bool = False,
        workers: RayEngine | None = None,
    ) -> None:
        """Delete the documents `remove`, then add the documents `add`, in memory and on disk.

        Queries wait only for the last step: documents are split, compressed and embedded before.
        """
        with self._change_lock:
            self.contents.folder.check_writable()
            # Hashed first, in case the caller changes a document in the meantime.
            hashes = {doc.doc_id: doc.hash for doc in add}
            nodes = self._ingestion(workers, show_progress).chunks(
                add, self.contents.folder.segments
            )
            self.contents.change(nodes, hashes, remove)

    def _ingestion(self, engine: RayEngine | None, show_progress: bool) -> Ingestion:
        models = self.compressor, self.embed_model
        return Ingestion(self.contents.manifest, *models, self.store, engine, show_progress)

    def _warn_if_outdated(self, compressor: ZCompressor) -> None:
        built_by = self.contents.manifest.fingerprint
        if compressor.fingerprint != built_by:
            warnings.warn(
                f"the index {self.path} was compressed by checkpoint {built_by} "
                f"and is read by checkpoint {compressor.fingerprint}: each chunk is compressed "
                "again when it is first retrieved, or all of them now by recompress().",
                stacklevel=3,
            )


def _load(
    path: Path,
    embed_model: BaseEmbedding | None,
    compressor: ZCompressor | None,
    store: ZStore | None = None,
) -> ZTokenIndex:
    return ZTokenIndex.load(path, embed_model=embed_model, compressor=compressor, store=store)
