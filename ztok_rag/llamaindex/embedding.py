"""The default embedding model for LlamaIndex; name and dimension of any embedding model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding

from ztok_rag.codec.finder import default_encoder_path
from ztok_rag.errors import ZtokError
from ztok_rag.llamaindex.arguments import refuse_unknown_fields
from ztok_rag.llamaindex.threads import in_thread
from ztok_rag.selection.embedding import (
    DEFAULT_EMBEDDING,
    SentenceEmbedder,
    default_embedder,
)


class DefaultEmbedding(BaseEmbedding):
    """LlamaIndex's interface to a `SentenceEmbedder`."""

    _embedder: SentenceEmbedder = PrivateAttr()

    def __init__(self, embedder: SentenceEmbedder | None = None, **kwargs: Any) -> None:
        """Set up.

        Args:
            embedder: `None` is the default one, shared by the process.
            kwargs: fields of `BaseEmbedding`.

        Raises:
            ZtokError: there is no argument of that name.
        """
        refuse_unknown_fields(type(self), kwargs)
        embedder = embedder or default_embedder()
        super().__init__(**{"model_name": embedder.model_name, **kwargs})
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenDefaultEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.get_query_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await in_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.get_text_embedding_batch(texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await in_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await in_thread(self._get_text_embeddings, texts)


@lru_cache(maxsize=1)
def default_embedding() -> DefaultEmbedding:
    """A LlamaIndex embedding model of 384 dimensions, loaded once per process.

    Raises:
        ZtokError: the wheel that holds the model is not installed.
    """
    return DefaultEmbedding()


def embedding_name(embed_model: BaseEmbedding) -> str:
    """A name of the model that does not depend on the folder it is in."""
    name = embed_model.model_name
    if name == "unknown":  # of a model that was given no name
        return embed_model.class_name()
    if not Path(name).is_dir():
        return name
    try:
        shipped = Path(name) == default_encoder_path()
    except ZtokError:
        shipped = False
    return DEFAULT_EMBEDDING if shipped else Path(name).name


def embedding_dimension(embed_model: BaseEmbedding) -> int:
    """Dimension of the model's vectors."""
    return len(embed_model.get_text_embedding("length"))
