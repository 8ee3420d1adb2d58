"""Vectors of passages and questions by the default embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def embed_texts(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors `[n, d]` of passages by the default embedding model."""
    return _unit(_embedding().get_text_embedding_batch(list(texts)))


def embed_queries(queries: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors `[n, d]` of questions by the default embedding model."""
    model = _embedding()
    return _unit([model.get_query_embedding(query) for query in queries])


def _embedding() -> Any:
    from ztok_rag import default_embedding

    return default_embedding()


def _unit(vectors: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    array = np.asarray(vectors, dtype=np.float32)
    norms = np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return np.asarray(array / norms, dtype=np.float32)
