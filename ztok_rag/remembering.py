"""An embedding model that remembers questions; apart, since it loads sentence-transformers."""

from __future__ import annotations

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

_REMEMBERED = 64


class RememberingEmbedding(HuggingFaceEmbedding):
    """One that embeds a question once, though retriever and postprocessor both ask for it."""

    _questions: dict[str, list[float]] = PrivateAttr(default_factory=dict)

    def _get_query_embedding(self, query: str) -> list[float]:
        vector = self._questions.get(query)
        if vector is None:
            vector = super()._get_query_embedding(query)
            if len(self._questions) >= _REMEMBERED:
                self._questions.clear()
            self._questions[query] = vector
        return list(vector)
