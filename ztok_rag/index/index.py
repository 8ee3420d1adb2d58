"""`ZTokenIndex`: documents, their vectors and their Z-tokens in one folder."""

from __future__ import annotations

import asyncio
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
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery
from llama_index.vector_stores.faiss import FaissMapVectorStore  # type: ignore[import-untyped]
from tqdm.auto import tqdm

from ztok_rag.errors import ZtokError
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.vectors import FlatStore, deletable, read_index, vector_index
from ztok_rag.llamaindex.embedding import default_embedding, embedding_dimension, embedding_name
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.postprocessor import ZTokenPostprocessor
from ztok_rag.selection.embedding import DEFAULT_EMBEDDING
from ztok_rag.selection.focus import QuestionFocus
from ztok_rag.storage.defaults import default_compressor
from ztok_rag.storage.store import Closing, ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor

_CHUNKS_AT_ONCE = 64


@dataclass(frozen=True)
class IndexStats:
    """What a `ZTokenIndex` holds.

    Attributes:
        documents: documents.
        chunks: chunks of them, those that wait for compression included.
        pending: chunks without Z-tokens of the checkpoint in use; they are compressed when first
            retrieved, and left out of the token and byte counts below.
        source_tokens: tokens of the base LLM in the chunks.
        z_tokens: Z-tokens of the chunks.
        rate: source tokens per Z-token, as it came out.
        stored_bytes: bytes in the store: Z-tokens of each distinct chunk, for all rates at once,
            and what finds the sentences that a question is about.
        bytes_per_token: of these bytes, per source token.
        text_bytes: bytes of the chunks' text in UTF-8.
    """

    documents: int
    chunks: int
    pending: int
    source_tokens: int
    z_tokens: int
    rate: float
    stored_bytes: int
    bytes_per_token: float
    text_bytes: int


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
        self._folder = folder
        self._manifest = manifest
        self._index = index
        self._embed_model = embed_model
        self._compressor = compressor
        self._store = ZStore(folder.store)
        self._state_lock = threading.RLock()
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
        _check_settings(rate, chunk_size, chunk_overlap)
        _check_documents(documents)
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
            index._store.prune(manifest.fingerprint, index._texts())
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
        _check_embedding(folder.path, manifest, embed_model)
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
        self._store.close()

    # -- what it is made of

    @property
    def path(self) -> Path:
        """Folder of the index."""
        return self._folder.path

    @property
    def store(self) -> ZStore:
        """The store of this index's Z-tokens, whose secret signs its handles."""
        return self._store

    @property
    def rate(self) -> float:
        """Source tokens per Z-token that chunks are compressed at."""
        return self._manifest.rate

    @property
    def chunk_size(self) -> int:
        """Longest chunk, in tokens of the base LLM."""
        return self._manifest.chunk_size

    @property
    def document_ids(self) -> tuple[str, ...]:
        """Ids of the documents, in order of the alphabet."""
        with self._state_lock:
            return tuple(sorted(self._index.docstore.get_all_ref_doc_info() or {}))

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
        return self.compressor.fingerprint != self._manifest.fingerprint

    def stats(self) -> IndexStats:
        """What the index holds; every stored sequence is read for it, no model is loaded."""
        with self._model_lock:
            loaded = self._compressor
        manifest = self._manifest
        fingerprint = manifest.fingerprint if loaded is None else loaded.fingerprint
        texts = self._texts()
        sequences = {text: self._store.get(fingerprint, text) for text in dict.fromkeys(texts)}
        chunks = [z for text in texts if (z := sequences[text]) is not None]
        source_tokens = sum(z.finest.source_tokens for z in chunks)
        z_tokens = sum(len(z.at(manifest.rate)) for z in chunks)
        stored_bytes = self._store.size_bytes
        return IndexStats(
            documents=len(self.document_ids),
            chunks=len(texts),
            pending=len(texts) - len(chunks),
            source_tokens=source_tokens,
            z_tokens=z_tokens,
            rate=source_tokens / max(1, z_tokens),
            stored_bytes=stored_bytes,
            bytes_per_token=stored_bytes / max(1, source_tokens),
            text_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
        )

    # -- asking it

    def as_retriever(self, top_k: int = 3) -> BaseRetriever:
        """A LlamaIndex retriever of the `top_k` best chunks; it follows changes of the index.

        Raises:
            ZtokError: `top_k` is below 1.
        """
        if top_k < 1:
            raise ZtokError(f"top_k is the number of chunks to retrieve, at least 1, not {top_k}.")
        return _Retriever(self, top_k)

    def llm(self, *, max_new_tokens: int = 64, **kwargs: Any) -> ZTokenLLM:
        """A `ZTokenLLM` that reads this index's handles; `kwargs` are its other arguments."""
        return ZTokenLLM(
            reader=self.compressor.reader,
            store=self._store,
            max_new_tokens=max_new_tokens,
            **kwargs,
        )

    def postprocessor(self, **kwargs: Any) -> ZTokenPostprocessor:
        """A `ZTokenPostprocessor` with this index's Z-tokens; `kwargs` are its other arguments."""
        return ZTokenPostprocessor(
            compressor=self.compressor,
            store=self._store,
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
            _check_documents(documents)
            known = set(self.document_ids)
            hash_of = self._index.docstore.get_document_hash
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
            _check_settings(rate, self.chunk_size, self._manifest.chunk_overlap)
            fingerprint = self.compressor.fingerprint
            texts = self._texts()
            compressed = self._compress(texts, show_progress)
            self._commit(replace(self._manifest, rate=rate, fingerprint=fingerprint))
            self._store.prune(fingerprint, texts)
            return compressed

    def persist(self) -> None:
        """Write the index to its folder. Every change has been written already.

        Raises:
            ZtokError: another process has changed the folder, or it cannot be written.
        """
        with self._change_lock:
            self._commit(self._manifest)

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
            _check_documents(add)
            # Splitting must not see what a caller does to a document meanwhile.
            hashes = {doc.doc_id: doc.hash for doc in add}
            nodes = self._prepare(add, show_progress)
            gone = self._texts_only_in(remove) - {_text(node) for node in nodes}
            with self._state_lock:
                try:
                    self._remove_documents(remove)
                    self._insert(nodes, hashes)
                    self._commit(self._manifest, forget=gone)
                except BaseException:
                    self._reload()
                    raise

    def _prepare(self, documents: Sequence[Document], show_progress: bool) -> list[BaseNode]:
        """The chunks of documents with their vectors; their Z-tokens are in the store."""
        nodes = self._split(documents)
        self._compress([_text(node) for node in nodes], show_progress)
        vectors = embed_nodes(nodes, self.embed_model, show_progress=show_progress)
        for node in nodes:
            node.embedding = vectors[node.node_id]
        return nodes

    def _split(self, documents: Sequence[Document]) -> list[BaseNode]:
        if not documents:
            return []
        tokenizer = self.compressor.tokenizer

        def tokenize(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return ids

        splitter = SentenceSplitter(
            chunk_size=self.chunk_size,
            chunk_overlap=self._manifest.chunk_overlap,
            tokenizer=tokenize,
        )
        nodes: list[BaseNode] = []
        for document in documents:
            try:
                nodes += splitter.get_nodes_from_documents([document])
            except ValueError as error:  # metadata that leaves no room for text
                raise ZtokError(
                    f"the document {document.doc_id!r} cannot be split ({error}); shorten its "
                    "metadata, or exclude it from what the LLM and the embedding model see."
                ) from error
        return nodes

    def _compress(self, texts: Sequence[str], show_progress: bool) -> int:
        """Put the Z-tokens of texts into the store; the number that had to be compressed."""
        compressed = 0
        distinct = list(dict.fromkeys(texts))
        focus = QuestionFocus.over(self.compressor, self._store, self.embed_model)
        with tqdm(total=len(distinct), desc="Compressing", disable=not show_progress) as bar:
            for start in range(0, len(distinct), _CHUNKS_AT_ONCE):
                batch = distinct[start : start + _CHUNKS_AT_ONCE]
                compressed += focus.prepare(batch)
                bar.update(len(batch))
        return compressed

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

    def _texts(self) -> list[str]:
        """The text of every chunk."""
        with self._state_lock:
            return [_text(node) for node in self._index.docstore.docs.values()]

    def _texts_only_in(self, doc_ids: Sequence[str]) -> set[str]:
        """The texts of the chunks of these documents that no other document has."""
        if not doc_ids:
            return set()
        inside: set[str] = set()
        outside: set[str] = set()
        with self._state_lock:
            for node in self._index.docstore.docs.values():
                (inside if node.ref_doc_id in doc_ids else outside).add(_text(node))
        return inside - outside

    def _commit(self, manifest: Manifest, *, forget: Iterable[str] = ()) -> None:
        """Write the index to disk.

        The Z-tokens of the texts `forget` go once the rest is written and before it holds: a kill
        between leaves a document that is compressed again, never Z-tokens without a document.

        Args:
            manifest: its settings.
            forget: texts whose Z-tokens are deleted.
        """
        # A fresh build replaces whatever index is there.
        expected = self._manifest.revision or None
        revised = manifest.revised()
        storage = self._index.storage_context
        own = not manifest.vector_store
        with self._folder.replacing(expected, revised) as target:
            # The image store that LlamaIndex adds stays empty, and others are the caller's.
            kept = {"default": storage.vector_store} if own else {}
            replace(storage, vector_stores=kept).persist(target)
            if forget := list(forget):
                self._store.delete(forget)
        self._manifest = revised

    def _reload(self) -> None:
        """Go back to what is on disk, if anything is."""
        if self._folder.exists() and self._manifest.revision:
            self._manifest = self._folder.read()
            vectors = self._index.vector_store if self._manifest.vector_store else None
            self._index = read_index(self._folder, vectors)

    def _warn_if_outdated(self, compressor: ZCompressor) -> None:
        if compressor.fingerprint != self._manifest.fingerprint:
            warnings.warn(
                f"the index {self.path} was compressed by checkpoint {self._manifest.fingerprint} "
                f"and is read by checkpoint {compressor.fingerprint}: each chunk is compressed "
                "again when it is first retrieved, or all of them now by recompress().",
                stacklevel=3,
            )


class _Retriever(BaseRetriever):
    """Retrieves from a `ZTokenIndex` as it is at the time of each question."""

    def __init__(self, index: ZTokenIndex, top_k: int) -> None:
        super().__init__()
        self._index = index
        self._top_k = top_k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._index.search(query_bundle, self._top_k)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._index.search, query_bundle, self._top_k)


def _text(node: BaseNode) -> str:
    """The text that is compressed."""
    return node.get_content(MetadataMode.NONE)


def _ids(documents: Iterable[Document]) -> tuple[str, ...]:
    return tuple(doc.doc_id for doc in documents)


def _check_documents(documents: Sequence[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if not _text(document).strip():
            raise ZtokError(
                f"the document {document.doc_id!r} has no words to index; leave it out."
            )
        if document.doc_id in seen:
            raise ZtokError(
                f"two documents have the id {document.doc_id!r}; give each one its own."
            )
        seen.add(document.doc_id)


def _check_settings(rate: float, chunk_size: int, chunk_overlap: int) -> None:
    from ztok_rag.codec.compressor import MAX_RATE

    if not 1 <= rate <= MAX_RATE:
        raise ZtokError(f"the rate must be from 1 to {MAX_RATE:.0f}, not {rate}.")
    if not 0 <= chunk_overlap < chunk_size:
        raise ZtokError(
            f"chunks of {chunk_size} tokens cannot share {chunk_overlap}; the overlap must be at "
            "least 0 and below the chunk size."
        )


def _check_embedding(path: Path, manifest: Manifest, embed_model: BaseEmbedding | None) -> None:
    """Refuse an embedding model whose vectors do not compare with those of the index."""
    name = DEFAULT_EMBEDDING if embed_model is None else embedding_name(embed_model)
    # The default model is known by its name and need not be loaded for this.
    dimension = (
        manifest.embed_dimension if embed_model is None else embedding_dimension(embed_model)
    )
    if (name, dimension) == (manifest.embed_model, manifest.embed_dimension):
        return
    given = name if embed_model is None else f"{name} ({dimension} dimensions)"
    raise ZtokError(
        f"the index {path} was embedded by {manifest.embed_model} ({manifest.embed_dimension} "
        f"dimensions) and cannot be searched by {given}; pass that model as embed_model, or build "
        "the index again with this one."
    )
