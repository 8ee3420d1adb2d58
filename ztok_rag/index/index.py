"""`ZTokenIndex`: documents, their vectors and their Z-tokens in one folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core import Document
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices.utils import embed_nodes
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import BaseNode

from ztok_rag.errors import ZtokError
from ztok_rag.forks import ForkSafeLock
from ztok_rag.index.checks import check_embedding, check_settings
from ztok_rag.index.chunks import chunk_text, compress_texts, split_documents
from ztok_rag.index.contents import Contents
from ztok_rag.index.corpus import Corpus
from ztok_rag.index.distributed import RayEngine, make_engine
from ztok_rag.index.documents import (
    check_documents,
    has_words,
    name_of,
    same_id,
    warn_left_out,
)
from ztok_rag.index.engines import TOP_K, make_chat_engine, make_query_engine, make_retriever
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.former import has_documents
from ztok_rag.index.holding import is_shared, store_to_build, store_to_load
from ztok_rag.index.large import LargeContents, NewFiles
from ztok_rag.index.refresh import RefreshResult, plan_refresh
from ztok_rag.index.stats import IndexStats, count
from ztok_rag.index.stores import Stores, TextGiven, VectorsGiven, theirs
from ztok_rag.index.vectors import empty_index, read_index
from ztok_rag.inputs import as_iterator
from ztok_rag.llamaindex.embedding import default_embedding, embedding_dimension, embedding_name
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.postprocessor import ZTokenPostprocessor
from ztok_rag.llamaindex.settings import user_embedding
from ztok_rag.selection.query_aware import QueryAwareSelector
from ztok_rag.storage.backends import in_parts
from ztok_rag.storage.closing import Closing
from ztok_rag.storage.defaults import default_compressor
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor

_DOCUMENTS_AT_ONCE = 256
"""Documents of a large build that are in memory together."""
_DOCUMENTS_AT_ONCE_ON_RAY = 2048  # workers load the models for each block of them


class ZTokenIndex(Closing):
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
                raise _would_empty(folder.path, "build")
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
                return cls._build_large(
                    documents,
                    files,
                    models,
                    show_progress=show_progress,
                    allow_empty=allow_empty,
                    workers=workers,
                )
            vectors = empty_index(manifest.embed_dimension, stores.vector_store)
            index = cls(Contents(folder, manifest, vectors, opened), **models)
            worded = [document for document in checked if has_words(document)]
            index._change(add=worded, show_progress=show_progress, workers=workers)
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
    def path(self) -> Path:
        """Folder of the index."""
        return self.contents.folder.path

    @property
    def store(self) -> ZStore:
        """The store of this index's Z-tokens; its secret signs the handles."""
        return self.contents.store

    @property
    def rate(self) -> float:
        """Source tokens per Z-token that chunks are compressed at."""
        return self.contents.manifest.rate

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

    # -- asking it

    def llm(self, *, max_new_tokens: int = 64, **kwargs: Any) -> ZTokenLLM:
        """A `ZTokenLLM` that reads this index's handles; `kwargs` are further arguments of it."""
        return ZTokenLLM(
            reader=self.compressor.reader,
            store=self.store,
            max_new_tokens=max_new_tokens,
            **kwargs,
        )

    def postprocessor(self, **kwargs: Any) -> ZTokenPostprocessor:
        """A `ZTokenPostprocessor` over this index's store; `kwargs` are further arguments of it."""
        return ZTokenPostprocessor(
            compressor=self.compressor,
            store=self.store,
            **{"rate": self.rate, "embed_model": self.embed_model, **kwargs},
        )

    def as_retriever(self, **kwargs: Any) -> BaseRetriever:
        """A LlamaIndex retriever of the best chunks; it follows changes of the index.

        Args:
            kwargs: as of `VectorStoreIndex.as_retriever`. `similarity_top_k` chunks are
                retrieved, by default 3, of those that `filters`, `doc_ids` and `node_ids` let
                through. `vector_store_query_mode` and the like need a vector store of your own
                that heeds them; FAISS does not.

        Raises:
            ZtokError: an argument is not known, out of range, or not heeded by the vector store.
        """
        return make_retriever(self, kwargs)

    def as_query_engine(self, llm: LLM | None = None, **kwargs: Any) -> RetrieverQueryEngine:
        """A LlamaIndex query engine that answers from the Z-tokens of the best chunks.

        Args:
            llm: what answers, if not `self.llm()`; it must be able to read this index's handles.
            kwargs: as of `VectorStoreIndex.as_query_engine`: those of `as_retriever`, and
                `response_mode`, `text_qa_template`, `streaming` and the like.
                `node_postprocessors` run before the text becomes Z-tokens. Besides, `rate`,
                `token_budget`, and what else `ZTokenPostprocessor` reads by.

        Raises:
            ZtokError: an argument is not known or not heeded, or `llm` cannot read Z-tokens.
        """
        return make_query_engine(self, llm, kwargs)

    def as_chat_engine(
        self, chat_mode: ChatMode | str = ChatMode.BEST, llm: LLM | None = None, **kwargs: Any
    ) -> BaseChatEngine:
        """A LlamaIndex chat engine that answers from the Z-tokens of the best chunks.

        Args:
            chat_mode: `"context"`, `"condense_plus_context"` (the best), `"condense_question"` or
                `"simple"`, which retrieves nothing.
            llm: what answers, if not `self.llm()`; it must be able to read this index's handles.
            kwargs: as of `VectorStoreIndex.as_chat_engine`: those of `as_retriever`,
                `node_postprocessors`, and those of the mode, such as `memory`. Besides, what
                `ZTokenPostprocessor` reads by.

        Raises:
            ZtokError: there is no such mode, an argument is not known in it or not heeded, or
                `llm` cannot read Z-tokens.
        """
        return make_chat_engine(self, chat_mode, llm, kwargs)

    def query(self, question: str, *, similarity_top_k: int = TOP_K) -> RESPONSE_TYPE:
        """The answer to a question, with the chunks it was read from in `source_nodes`.

        Raises:
            ZtokError: the question has no words, or `similarity_top_k` is below 1.
        """
        if not question.strip():
            raise ZtokError("the question has no words; ask one.")
        return self.as_query_engine(similarity_top_k=similarity_top_k).query(question)

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
                raise _would_empty(self.path, "refresh_ref_docs")
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
            compressed = self._compress(
                self.contents.texts(), self.contents.chunk_count, show_progress
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

    @classmethod
    def _build_large(
        cls,
        documents: Iterable[Document],
        files: NewFiles,
        models: dict[str, Any],
        *,
        show_progress: bool,
        allow_empty: bool,
        workers: RayEngine | None,
    ) -> ZTokenIndex:
        """Build an index whose documents are not held in memory."""
        left_out: list[Document] = []
        at_once = _DOCUMENTS_AT_ONCE if workers is None else _DOCUMENTS_AT_ONCE_ON_RAY
        cluster = nullcontext() if workers is None else workers.connected()
        with cluster, files.making() as contents:
            index = cls(contents, **models)
            for number, block in enumerate(in_parts(documents, at_once)):
                checked = check_documents(block)
                left_out += [document for document in checked if not has_words(document)]
                worded = [document for document in checked if has_words(document)]
                for document in worded:
                    if contents.has_document(document.doc_id):
                        raise same_id(document)
                hashes = {document.doc_id: document.hash for document in worded}
                # What a killed build has made of a block is found by the next one.
                segments = files.folder.segments / str(number)
                contents.fill(index._prepare(worded, show_progress, workers, segments), hashes)
            if not contents.document_count and not allow_empty and has_documents(files.folder):
                raise _would_empty(files.folder.path, "build")
            warn_left_out(left_out)
            index.contents = files.adopt(contents)
        if not files.is_fresh:
            index.contents.holding.keep_only(files.manifest.fingerprint, index.contents.texts())
        if files.manifest.store:
            files.folder.remove_store()
        return index

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
            nodes = self._prepare(add, show_progress, workers)
            self.contents.change(nodes, hashes, remove)

    def _prepare(
        self,
        documents: Sequence[Document],
        show_progress: bool,
        workers: RayEngine | None,
        segments: Path | None = None,
    ) -> list[BaseNode]:
        """The chunks of documents, with embeddings, after their Z-tokens were put in the store."""
        manifest = self.contents.manifest
        nodes = split_documents(
            documents,
            self.compressor.tokenizer,
            chunk_size=manifest.chunk_size,
            chunk_overlap=manifest.chunk_overlap,
        )
        if workers is not None and nodes:
            workers.prepare(
                nodes,
                self.compressor,
                self.embed_model,
                self.store,
                segments or self.contents.folder.segments,
                show_progress=show_progress,
            )
        # Whatever is missing even so is made here.
        distinct = dict.fromkeys(map(chunk_text, nodes))
        self._compress(distinct, len(distinct), show_progress)
        vectors = embed_nodes(nodes, self.embed_model, show_progress=show_progress)
        for node in nodes:
            node.embedding = vectors[node.node_id]
        return nodes

    def _compress(self, texts: Iterable[str], total: int, show_progress: bool) -> int:
        """Put the Z-tokens of texts into the store; the number that had to be compressed."""
        selector = QueryAwareSelector.over(self.compressor, self.store, self.embed_model)
        return compress_texts(selector, texts, total=total, show_progress=show_progress)

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


def _would_empty(path: Path, method: str) -> ZtokError:
    return ZtokError(
        f"there is no document with words, so {method}() would empty the index {path}; give "
        "documents, or allow_empty=True if that is meant."
    )
