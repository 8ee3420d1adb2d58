"""A LlamaIndex retriever over a `ZTokenIndex`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import VectorStoreQuery

from ztok_rag.errors import ZtokError
from ztok_rag.inputs import repair_surrogates
from ztok_rag.llamaindex.threads import in_thread

if TYPE_CHECKING:
    from llama_index.core.embeddings import BaseEmbedding

    from ztok_rag.index.corpus import Corpus


class Retriever(BaseRetriever):
    """Retrieves from an index as it is at the time of each question."""

    def __init__(
        self,
        contents: Corpus,
        embed_model: BaseEmbedding,
        query: VectorStoreQuery,
        store_arguments: Mapping[str, Any],
        **base: Any,
    ) -> None:
        """Set up.

        Args:
            contents: of the index.
            embed_model: embeds the questions.
            query: what is asked of the vector store, without a question.
            store_arguments: further arguments of the vector store's `query`.
            base: arguments of `BaseRetriever`.
        """
        super().__init__(**base)
        self._contents = contents
        self._embed_model = embed_model
        self._query = query
        self._store_arguments = store_arguments

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if query_bundle.embedding is None:
            if not any(text.strip() for text in query_bundle.embedding_strs):
                raise ZtokError("the question has no words; ask one.")
            asked = [repair_surrogates(s, "the question") for s in query_bundle.embedding_strs]
            query_bundle.embedding = self._embed_model.get_agg_embedding_from_queries(asked)
        query = replace(
            self._query,
            query_embedding=query_bundle.embedding,
            query_str=query_bundle.query_str,
        )
        return self._contents.search(query, **self._store_arguments)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await in_thread(self._retrieve, query_bundle)
