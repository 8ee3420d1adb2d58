"""A LlamaIndex retriever over a `ZTokenIndex`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

if TYPE_CHECKING:
    from ztok_rag.index.index import ZTokenIndex


class Retriever(BaseRetriever):
    """Retrieves from a `ZTokenIndex` as it is at the time of each question."""

    def __init__(self, index: ZTokenIndex, top_k: int) -> None:
        super().__init__()
        self._index = index
        self._top_k = top_k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._index.search(query_bundle, self._top_k)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._index.search, query_bundle, self._top_k)
