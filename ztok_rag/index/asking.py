"""How a `ZTokenIndex` is asked: LlamaIndex's retrievers, query engines and chat engines."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever

from ztok_rag.errors import ZtokError
from ztok_rag.index.corpus import Corpus
from ztok_rag.index.engines import TOP_K, make_chat_engine, make_query_engine, make_retriever
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.postprocessor import ZTokenPostprocessor
from ztok_rag.storage.closing import Closing
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


class Asking(Closing):
    """What answers questions from the documents of an index.

    Attributes:
        contents: the documents.
    """

    contents: Corpus

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
    @abstractmethod
    def compressor(self) -> ZCompressor:
        """The compressor in use; the default one is loaded when first asked for."""

    @property
    @abstractmethod
    def embed_model(self) -> BaseEmbedding:
        """The embedding model in use; the default one is loaded when first asked for."""

    def llm(self, *, max_new_tokens: int = 64, **kwargs: Any) -> ZTokenLLM:
        """A `ZTokenLLM` that reads this index's handles; `kwargs` are further arguments of it."""
        return ZTokenLLM(
            reader=self.compressor.reader,
            store=self.store,
            max_new_tokens=max_new_tokens,
            **{"embed_model": self.embed_model, **kwargs},
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
