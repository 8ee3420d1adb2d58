"""`ZTokenIndex`: documents, their vectors and their Z-tokens in one folder."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices.utils import embed_nodes
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ztok_rag.errors import ZtokError
from ztok_rag.index.checks import check_embedding, check_settings
from ztok_rag.index.chunks import check_documents, chunk_text, compress_texts, split_documents
from ztok_rag.index.contents import Contents
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.retriever import Retriever
from ztok_rag.index.stats import IndexStats, count
from ztok_rag.index.vectors import FlatStore, deletable, read_index, vector_index
from ztok_rag.llamaindex.embedding import default_embedding, embedding_dimension, embedding_name
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.postprocessor import ZTokenPostprocessor
from ztok_rag.selection.focus import QuestionFocus
from ztok_rag.storage.defaults import default_compressor
from ztok_rag.storage.store import Closing, ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


@dataclass(frozen=True)
class RefreshResult:
    """Ids of the documents that `ZTokenIndex.refresh` was given, by what became of them.

    Attributes:
        added: were not in the index.
        changed: had another text or other metadata.
        unchanged: were in the index as they are.
        removed: were in the index and not among the documents.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class ZTokenIndex(Closing):
    """A corpus that is searched by its text's vectors and read as Z-tokens.

    Made by `build` or `load`. Chunks are compressed when their document is added, so that no
    query waits for it. Every change is on disk when its method returns, and is made whole or not
    at all: after a kill, and after an error, the folder holds the index as it was before or
    after. A vector store of the caller's own is the exception: its vectors are the caller's to
    keep and to restore.

    Threads may query one object while another changes it. Processes may share a folder; one that
    would change an index that another has changed since is told to load it again.
    """

    def __init__(
        self,
        folder: IndexFolder,
        manifest: Manifest,
        index: VectorStoreIndex,
        *,
        embed_model: BaseEmbedding | None,
        compressor: ZCompressor | None,
    ) -> None:
        """For `build` and `load`, which say what the arguments are."""
        self._contents = Contents(folder, manifest, index, ZStore(folder.store))
        self._embed_model = embed_model
        self._compressor = compressor
        self._change_lock = threading.RLock()
        self._model_lock = threading.RLock()

    # -- making one

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        path: str | Path,
        *,
        rate: float = 4.0,
        chunk_size: int = 256,
        chunk_overlap: int = 0,
        embed_model: BaseEmbedding | None = None,
        compressor: ZCompressor | None = None,
        vector_store: BasePydanticVectorStore | None = None,
        show_progress: bool = False,
    ) -> ZTokenIndex:
        """Index documents; an index already in the folder is replaced, other files never are.

        When a build is killed and repeated, chunks that it had compressed are not compressed
        again.

        Args:
            documents: with ids of their own; any number.
            path: folder of the index, made if needed.
            rate: source tokens per Z-token, 1 to 64.
            chunk_size: longest chunk, in tokens of the base LLM, metadata included.
            chunk_overlap: tokens that neighbouring chunks share.
            embed_model: `None` is `ztok_rag.default_embedding()`.
            compressor: `None` is the default one.
            vector_store: an empty LlamaIndex vector store that the caller keeps; `None` is a
                FAISS store in the folder, exact and by cosine.
            show_progress: whether to show progress bars.

        Raises:
            ZtokError: a document has no words, two have one id, a setting is out of range, or
                the folder holds something else.
        """
        check_settings(rate, chunk_size, chunk_overlap)
        check_documents(documents)
        folder = IndexFolder(path)
        folder.claim()
        compressor = compressor or default_compressor()
        embed_model = embed_model or default_embedding()
        dimension = embedding_dimension(embed_model)
        manifest = Manifest(
            rate=rate,
            chunk_size=chunk_size,
            chunk_overlap=chunk_overlap,
            fingerprint=compressor.fingerprint,
            embed_model=embedding_name(embed_model),
            embed_dimension=dimension,
            vector_store="" if vector_store is None else vector_store.class_name(),
        )
        vectors = FlatStore.empty(dimension) if vector_store is None else vector_store
        storage = StorageContext.from_defaults(vector_store=deletable(vectors))
        llama_index = vector_index(storage, nodes=[])
        index = cls(folder, manifest, llama_index, embed_model=embed_model, compressor=compressor)
        try:
            index._change(add=documents, show_progress=show_progress)
            index.store.prune(manifest.fingerprint, index._contents.texts())
        except BaseException:
            index.close()
            raise
        return index

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        embed_model: BaseEmbedding | None = None,
        compressor: ZCompressor | None = None,
        vector_store: BasePydanticVectorStore | None = None,
    ) -> ZTokenIndex:
        """Open an index.

        With another checkpoint than the chunks were compressed by, a warning says so: each chunk
        is then compressed again when first retrieved, or all are by `recompress`.

        Args:
            path: folder that `build` wrote.
            embed_model: the model that the index was built with; `None` is the default one.
            compressor: `None` is the default one. Default models are loaded when first needed.
            vector_store: the one that was given to `build`, if any.

        Raises:
            ZtokError: there is no index or it is damaged, the embedding model is another one, or
                the vector store is missing.
        """
        folder = IndexFolder(path)
        manifest = folder.read()
        check_embedding(folder.path, manifest, embed_model)
        if bool(manifest.vector_store) != (vector_store is not None):
            raise ZtokError(
                f"the vectors of the index {folder.path} are in a {manifest.vector_store} of "
                "yours; pass it as vector_store."
                if manifest.vector_store
                else f"the index {folder.path} has its own vectors; leave vector_store out."
            )
        llama_index = read_index(folder, vector_store)
        index = cls(folder, manifest, llama_index, embed_model=embed_model, compressor=compressor)
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
        return self._contents.folder.path

    @property
    def store(self) -> ZStore:
        """The store of this index's Z-tokens, whose secret signs its handles."""
        return self._contents.store

    @property
    def rate(self) -> float:
        """Source tokens per Z-token that chunks are compressed at."""
        return self._contents.manifest.rate

    @property
    def chunk_size(self) -> int:
        """Longest chunk, in tokens of the base LLM."""
        return self._contents.manifest.chunk_size

    @property
    def document_ids(self) -> tuple[str, ...]:
        """Ids of the documents, in order of the alphabet."""
        return self._contents.document_ids

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
        """Whether another checkpoint than the one in use compressed the chunks."""
        return self.compressor.fingerprint != self._contents.manifest.fingerprint

    def stats(self) -> IndexStats:
        """What the index holds; every stored sequence is read for it, no model is loaded."""
        with self._model_lock:
            loaded = self._compressor
        return count(self._contents, None if loaded is None else loaded.fingerprint)

    # -- asking it

    def as_retriever(self, top_k: int = 3) -> BaseRetriever:
        """A LlamaIndex retriever of the `top_k` best chunks; it follows changes of the index.

        Raises:
            ZtokError: `top_k` is below 1.
        """
        if top_k < 1:
            raise ZtokError(f"top_k is the number of chunks to retrieve, at least 1, not {top_k}.")
        return Retriever(self, top_k)

    def llm(self, *, max_new_tokens: int = 64, **kwargs: Any) -> ZTokenLLM:
        """A `ZTokenLLM` that reads this index's handles; `kwargs` are its other arguments."""
        return ZTokenLLM(
            reader=self.compressor.reader,
            store=self.store,
            max_new_tokens=max_new_tokens,
            **kwargs,
        )

    def postprocessor(self, **kwargs: Any) -> ZTokenPostprocessor:
        """A `ZTokenPostprocessor` with this index's Z-tokens; `kwargs` are its other arguments."""
        return ZTokenPostprocessor(
            compressor=self.compressor,
            store=self.store,
            **{"rate": self.rate, "embed_model": self.embed_model, **kwargs},
        )

    def as_query_engine(
        self, top_k: int = 3, *, llm: LLM | None = None, **kwargs: Any
    ) -> RetrieverQueryEngine:
        """A LlamaIndex query engine that answers from the Z-tokens of the `top_k` best chunks.

        Args:
            top_k: chunks retrieved per question.
            llm: what answers, if not `self.llm()`; it must be able to read this index's handles.
            kwargs: arguments of `RetrieverQueryEngine.from_args`, such as `streaming`. Its
                `node_postprocessors` run before the text becomes Z-tokens.

        Raises:
            ZtokError: `top_k` is below 1, or `llm` cannot read Z-tokens.
        """
        llm = llm or self.llm()
        before = kwargs.pop("node_postprocessors", None) or ()
        return RetrieverQueryEngine.from_args(
            self.as_retriever(top_k),
            llm=llm,
            node_postprocessors=[*before, self.postprocessor(llm=llm)],
            **kwargs,
        )

    def query(self, question: str, top_k: int = 3) -> RESPONSE_TYPE:
        """The answer to a question, with the chunks it was read from in `source_nodes`.

        Raises:
            ZtokError: the question has no words, or `top_k` is below 1.
        """
        if not question.strip():
            raise ZtokError("the question has no words; ask one.")
        return self.as_query_engine(top_k).query(question)

    def search(self, query: QueryBundle, top_k: int) -> list[NodeWithScore]:
        """The `top_k` best chunks as they are, best first, with their similarity."""
        if query.embedding is None:
            query.embedding = self.embed_model.get_agg_embedding_from_queries(query.embedding_strs)
        return self._contents.search(query, top_k)

    # -- changing it

    def add(self, documents: Sequence[Document], *, show_progress: bool = False) -> None:
        """Add documents, with ids that are not in the index yet.

        Raises:
            ZtokError: a document has no words, or its id is there already; nothing is added then.
        """
        with self._change_lock:
            known = set(self.document_ids)
            if twice := [doc.doc_id for doc in documents if doc.doc_id in known]:
                raise ZtokError(
                    f"the index {self.path} has a document {twice[0]!r} already; use refresh() to "
                    "replace it."
                )
            self._change(add=documents, show_progress=show_progress)

    def delete(self, doc_id: str) -> None:
        """Delete a document: its text, vectors and Z-tokens, in memory and on disk.

        Z-tokens of a chunk that another document holds word for word stay.

        Raises:
            ZtokError: the index has no document of this id.
        """
        with self._change_lock:
            if doc_id not in self.document_ids:
                raise ZtokError(
                    f"the index {self.path} has no document {doc_id!r}; document_ids lists those "
                    "it has."
                )
            self._change(remove=[doc_id])

    def refresh(
        self,
        documents: Sequence[Document],
        *,
        remove_others: bool = False,
        show_progress: bool = False,
    ) -> RefreshResult:
        """Add documents that are new, and replace those whose text or metadata has changed.

        Args:
            documents: known by their ids, and compared by content.
            remove_others: whether to delete the documents in the index that are not among these.
            show_progress: whether to show progress bars.

        Raises:
            ZtokError: a document has no words, or two have one id; nothing is changed then.
        """
        with self._change_lock:
            check_documents(documents)
            known = set(self.document_ids)
            hash_of = self._contents.hash_of
            new = [doc for doc in documents if doc.doc_id not in known]
            old = [doc for doc in documents if doc.doc_id in known]
            changed = [doc for doc in old if hash_of(doc.doc_id) != doc.hash]
            given = {doc.doc_id for doc in documents}
            result = RefreshResult(
                added=_ids(new),
                changed=_ids(changed),
                unchanged=_ids(doc for doc in old if hash_of(doc.doc_id) == doc.hash),
                removed=tuple(sorted(known - given)) if remove_others else (),
            )
            if new or changed or result.removed:
                self._change(
                    add=[*new, *changed],
                    remove=[*result.changed, *result.removed],
                    show_progress=show_progress,
                )
            return result

    def recompress(self, *, rate: float | None = None, show_progress: bool = False) -> int:
        """Compress every chunk with the checkpoint in use, and forget all other Z-tokens.

        Args:
            rate: source tokens per Z-token from now on; `None` is the rate as it is.
            show_progress: whether to show a progress bar.

        Returns:
            Number of chunks that had to be compressed.

        Raises:
            ZtokError: the rate is out of range, or the folder cannot be written.
        """
        with self._change_lock:
            rate = self.rate if rate is None else rate
            check_settings(rate, self.chunk_size, self._contents.manifest.chunk_overlap)
            fingerprint = self.compressor.fingerprint
            texts = self._contents.texts()
            compressed = self._compress(texts, show_progress)
            self._contents.commit(
                replace(self._contents.manifest, rate=rate, fingerprint=fingerprint)
            )
            self.store.prune(fingerprint, texts)
            return compressed

    def persist(self) -> None:
        """Write the index to its folder. Every change has been written already.

        Raises:
            ZtokError: another process has changed the folder, or it cannot be written.
        """
        with self._change_lock:
            self._contents.commit(self._contents.manifest)

    def _change(
        self,
        *,
        add: Sequence[Document] = (),
        remove: Sequence[str] = (),
        show_progress: bool = False,
    ) -> None:
        """Delete the documents `remove`, then add `add`, in memory and on disk.

        What can be done beforehand, compression above all, is done before queries have to wait.
        """
        with self._change_lock:
            check_documents(add)
            # Splitting must not see what a caller does to a document meanwhile.
            hashes = {doc.doc_id: doc.hash for doc in add}
            nodes = self._prepare(add, show_progress)
            self._contents.change(nodes, hashes, remove)

    def _prepare(self, documents: Sequence[Document], show_progress: bool) -> list[BaseNode]:
        """The chunks of documents with their vectors; their Z-tokens are in the store."""
        manifest = self._contents.manifest
        nodes = split_documents(
            documents,
            self.compressor.tokenizer,
            chunk_size=manifest.chunk_size,
            chunk_overlap=manifest.chunk_overlap,
        )
        self._compress([chunk_text(node) for node in nodes], show_progress)
        vectors = embed_nodes(nodes, self.embed_model, show_progress=show_progress)
        for node in nodes:
            node.embedding = vectors[node.node_id]
        return nodes

    def _compress(self, texts: Sequence[str], show_progress: bool) -> int:
        """Put the Z-tokens of texts into the store; the number that had to be compressed."""
        focus = QuestionFocus.over(self.compressor, self.store, self.embed_model)
        return compress_texts(focus, texts, show_progress=show_progress)

    def _warn_if_outdated(self, compressor: ZCompressor) -> None:
        built_by = self._contents.manifest.fingerprint
        if compressor.fingerprint != built_by:
            warnings.warn(
                f"the index {self.path} was compressed by checkpoint {built_by} "
                f"and is read by checkpoint {compressor.fingerprint}: each chunk is compressed "
                "again when it is first retrieved, or all of them now by recompress().",
                stacklevel=3,
            )


def _ids(documents: Iterable[Document]) -> tuple[str, ...]:
    return tuple(doc.doc_id for doc in documents)
