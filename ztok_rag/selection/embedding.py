"""The default embedding model: all-MiniLM-L6-v2, read from its PyPI wheel without a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ztok_rag.codec.base import quiet_transformers
from ztok_rag.codec.finder import ENCODER, default_encoder_path
from ztok_rag.forks import ForkSafeLock
from ztok_rag.inputs import repair_surrogates

DEFAULT_EMBEDDING = ENCODER
_TEXTS_AT_ONCE = 10
_REMEMBERED = 64  # questions
_loading = ForkSafeLock()  # lru_cache alone may load twice when two threads call at once


class Embedder(Protocol):
    """The methods of LlamaIndex's `BaseEmbedding` that selection calls."""

    @property
    def model_name(self) -> str: ...

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]: ...

    def get_query_embedding(self, query: str) -> list[float]: ...


class SentenceEmbedder:
    """A sentence-transformers model in a folder, with unit vectors.

    It remembers the vectors of the last questions, because the retriever and the postprocessor
    ask for the same one.
    """

    def __init__(self, path: str | Path) -> None:
        """Load the model in folder `path`."""
        from sentence_transformers import SentenceTransformer

        self.model_name = str(path)
        with quiet_transformers():
            self._model: Any = SentenceTransformer(self.model_name)
        self._questions: dict[str, list[float]] = {}

    def __reduce__(self) -> tuple[Callable[[str], SentenceEmbedder], tuple[str]]:
        """A copy, also one in another process, is the model of the same folder."""
        return _embedder, (self.model_name,)

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, `[dimension]`."""
        texts = [repair_surrogates(text, "a text to embed") for text in texts]
        starts = range(0, len(texts), _TEXTS_AT_ONCE)
        return [v for i in starts for v in self._embed(texts[i : i + _TEXTS_AT_ONCE])]

    def get_query_embedding(self, query: str) -> list[float]:
        """The vector of a question."""
        query = repair_surrogates(query, "the question")
        vector = self._questions.get(query)
        if vector is None:
            (vector,) = self._embed([query])
            if len(self._questions) >= _REMEMBERED:
                self._questions.clear()
            self._questions[query] = vector
        return list(vector)

    def _embed(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._model.encode(
            texts, batch_size=_TEXTS_AT_ONCE, normalize_embeddings=True, show_progress_bar=False
        ).tolist()
        return vectors


def default_embedder() -> SentenceEmbedder:
    """The default model, of 384 dimensions, loaded once per process.

    Raises:
        ZtokError: the wheel that holds the model is not installed.
    """
    return _embedder(str(default_encoder_path()))


def _embedder(path: str) -> SentenceEmbedder:
    """The model in a folder, loaded once per process."""
    with _loading:
        return _loaded(path)


@lru_cache
def _loaded(path: str) -> SentenceEmbedder:
    return SentenceEmbedder(path)
